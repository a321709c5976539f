"""Takes users, passwords and queries out of URLs before they are shown.

Knows nothing of where they are shown, or of secrets outside of URLs.
"""

import re

MASK = "***"
# Up to the last "@" of the word: a password may hold an unescaped "/", "?" or "@".
_USERINFO = re.compile(r"(?<=://)[^\s\"']*@")
_QUERY_SECRET = re.compile(r"(?i)(?<=[?&])(password|token|secret)=[^&\s\"']*")


def without_userinfo(text: str) -> str:
    """The text with `user:password@` and secret query values of every URL in it masked."""
    if "://" not in text:
        return text
    return _QUERY_SECRET.sub(rf"\1={MASK}", _USERINFO.sub(f"{MASK}@", text))
