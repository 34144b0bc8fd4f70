"""Makes `cronium` a name that scripts have; hands on to the sitecustomize behind this one."""

import builtins
import os
import sys
from importlib.machinery import PathFinder


class _Cronium:
    """Reads the module when it is first used, as most programs never do."""

    def __getattr__(self, name):
        import cronium

        return getattr(cronium, name)


def _hand_on():
    here = os.path.dirname(os.path.abspath(__file__))
    others = [path for path in sys.path if os.path.abspath(path) != here]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    from importlib.util import module_from_spec

    module = module_from_spec(spec)
    # Whoever imports it by its name gets that one.
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


builtins.cronium = _Cronium()
_hand_on()
