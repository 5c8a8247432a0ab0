"""Category "code": Python source of standard library modules.

Read from the running Python, so nothing is shipped and the texts follow its version.
"""

from __future__ import annotations

from collections.abc import Iterator

from nybble.scoring.corpora.document import Document
from nybble.scoring.corpora.stdlib import no_sources, origin, read_module

# Pure Python, 12 KB or more, and present in every CPython from 3.11 to 3.14; modules that are
# mostly tables (mimetypes, html.entities) and those used by category "long" are left out.
MODULES = (
    "argparse",
    "ast",
    "base64",
    "bdb",
    "calendar",
    "cmd",
    "collections",
    "configparser",
    "contextlib",
    "csv",
    "dataclasses",
    "difflib",
    "doctest",
    "enum",
    "fileinput",
    "fractions",
    "ftplib",
    "functools",
    "gettext",
    "heapq",
    "html.parser",
    "http.client",
    "http.cookiejar",
    "imaplib",
    "ipaddress",
    "json.encoder",
    "logging.handlers",
    "mailbox",
    "optparse",
    "pickle",
    "plistlib",
    "pprint",
    "random",
    "selectors",
    "shlex",
    "shutil",
    "smtplib",
    "socketserver",
    "statistics",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "tokenize",
    "traceback",
    "unittest.case",
    "urllib.parse",
    "uuid",
    "weakref",
    "xml.dom.minidom",
)


def documents() -> Iterator[Document]:
    """Yield one document a module, in the order of `MODULES`; absent modules are left out."""
    found = False
    for name in MODULES:
        text = read_module(name)
        if text is None:
            continue
        found = True
        yield Document(
            id=f"code/{name}",
            category="code",
            text=text,
            source=origin(f"module {name}"),
            licence="PSF-2.0",
        )
    if not found:
        raise no_sources("code")
