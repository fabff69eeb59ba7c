"""nebula-router: a KV-cache-aware OpenAI gateway in front of vLLM.

config     every setting, once
sources    where the values of settings come from
reference  settings as people see them: names, bounds, the page
flags      settings as command-line flags
core       the Rust core: the only module that imports the extension
gateway    the Starlette app
fleet      nodes, placements, engines that come and go: the store and who works with it
control_plane  requests scheduled from Python
bench      the measurements
cli        the command `nebula`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Look the version up in the installed package, for who asks; most imports do not."""
        if name == "__version__":
            from importlib.metadata import version

            return version("nebula-router")
        raise AttributeError(name)
