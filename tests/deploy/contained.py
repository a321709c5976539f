"""Runs a command as process 1 on an image's files: read-only, /tmp in memory, as the image's user.

    python contained.py ROOT UID:GID PATH COMMAND...

Not a container in full: network, CPU and memory are the machine's, and system calls are not filtered.
"""

import os
import sys

SCRIPT = """
set -e
root=$1 user=$2 path=$3
shift 3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o size=16m,mode=1777 tmpfs "$root/tmp"
mount -o remount,bind,ro "$root"
export PATH="$path:$PATH"
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "$@"
"""

os.execvp(
    "unshare",
    [
        "unshare",
        "--mount",
        "--pid",
        "--ipc",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        *sys.argv[1:],
    ],
)
