"""The general options of Nomad's commands: each stands for a variable of Nomad's, and wins over it.

They lead to Nomad only: for job prefixes, links and logs. The worker has an address and a token of its own.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Annotated

import typer

PANEL = "General Options"


def _option(name: str, metavar: str, variable: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"-{name}", f"--{name}", metavar=metavar, help=f"{text} Or {variable}.", rich_help_panel=PANEL
    )
    return option


Address = Annotated[str, _option("address", "ADDR", "NOMAD_ADDR", "Nomad's address.")]
Region = Annotated[str, _option("region", "REGION", "NOMAD_REGION", "Where the job runs.")]
Namespace = Annotated[str, _option("namespace", "NAMESPACE", "NOMAD_NAMESPACE", "Where the job is.")]
Token = Annotated[str, _option("token", "SECRET", "NOMAD_TOKEN", "An ACL token.")]
CaCert = Annotated[str, _option("ca-cert", "PATH", "NOMAD_CACERT", "CA certificate, PEM.")]
CaPath = Annotated[str, _option("ca-path", "PATH", "NOMAD_CAPATH", "Folder of CA certificates.")]
ClientCert = Annotated[str, _option("client-cert", "PATH", "NOMAD_CLIENT_CERT", "Client certificate, PEM.")]
ClientKey = Annotated[str, _option("client-key", "PATH", "NOMAD_CLIENT_KEY", "Its private key, PEM.")]
TlsServerName = Annotated[
    str, _option("tls-server-name", "NAME", "NOMAD_TLS_SERVER_NAME", "Name in the server's certificate.")
]
TlsSkipVerify = Annotated[
    bool,
    typer.Option(
        "-tls-skip-verify",
        "--tls-skip-verify",
        help="Trust any certificate: not recommended. Or NOMAD_SKIP_VERIFY.",
        rich_help_panel=PANEL,
    ),
]
NoColor = Annotated[
    bool,
    typer.Option(
        "-no-color",
        "--no-color",
        help="No colours (a batch's progress has some). Or NOMAD_CLI_NO_COLOR.",
        rich_help_panel=PANEL,
    ),
]
ForceColor = Annotated[
    bool,
    typer.Option(
        "-force-color",
        "--force-color",
        help="Colours though the terminal's name has none. Or NOMAD_CLI_FORCE_COLOR.",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True, slots=True)
class General:
    """The general options of one call; empty: not given."""

    address: str = ""
    region: str = ""
    namespace: str = ""
    token: str = ""
    ca_cert: str = ""
    ca_path: str = ""
    client_cert: str = ""
    client_key: str = ""
    tls_server_name: str = ""
    tls_skip_verify: bool = False

    def variables(self) -> dict[str, str]:
        """The same as environment variables."""
        given = {
            "NOMAD_ADDR": self.address,
            "NOMAD_REGION": self.region,
            "NOMAD_NAMESPACE": self.namespace,
            "NOMAD_TOKEN": self.token,
            "NOMAD_CACERT": self.ca_cert,
            "NOMAD_CAPATH": self.ca_path,
            "NOMAD_CLIENT_CERT": self.client_cert,
            "NOMAD_CLIENT_KEY": self.client_key,
            "NOMAD_TLS_SERVER_NAME": self.tls_server_name,
            "NOMAD_SKIP_VERIFY": "true" if self.tls_skip_verify else "",
        }
        chosen = {name: value for name, value in given.items() if value}
        # A token and a file of one would be two.
        return chosen | {"NOMAD_TOKEN_FILE": ""} if self.token else chosen


def choose_colours(environment: MutableMapping[str, str], *, no_color: bool, force_color: bool) -> None:
    """Tell the libraries that colour text, in the variables they know. As with Nomad's, no colours win."""
    if no_color or environment.get("NOMAD_CLI_NO_COLOR"):
        environment["NO_COLOR"] = "1"
    elif force_color or environment.get("NOMAD_CLI_FORCE_COLOR"):
        environment["FORCE_COLOR"] = "1"
