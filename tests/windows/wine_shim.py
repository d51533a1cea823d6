"""What makes up for two gaps of wine 8. Installed as ``sitecustomize`` in the Windows Python, and nowhere else."""

import importlib.util
import sys

# The functions of ``platform`` ask _wmi, which needs propsys.VariantToString; without _wmi they ask the registry.
sys.modules["_wmi"] = None

NOT_SUPPORTED = 10045  # WSAEOPNOTSUPP
MODULE = "trio._core._io_windows"


class Finder:
    """Lets Trio take a socket for its own base: WSAIoctl does not know SIO_BASE_HANDLE, and there are no layers."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_patch(module):
            execute(module)
            ask = module._get_underlying_socket

            def get_underlying_socket(sock, **options):
                try:
                    return ask(sock, **options)
                except OSError as error:
                    if error.winerror != NOT_SUPPORTED:
                        raise
                    number = sock.fileno() if hasattr(sock, "fileno") else sock
                    return module.Handle(module.ffi.cast("HANDLE", number))

            module._get_underlying_socket = get_underlying_socket

        spec.loader.exec_module = execute_and_patch
        return spec


sys.meta_path.insert(0, Finder)
