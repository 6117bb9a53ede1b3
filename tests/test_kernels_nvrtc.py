"""The folder of compiled CUDA kernels, without CUDA: the compiler and the driver are stand-ins."""

import ctypes
import os
import tempfile
from pathlib import Path

import pytest

from dnamamba_kernels.scan.cuda import nvrtc


class Driver:
    """Loads the one cubin that is whole."""

    def __init__(self):
        self.loaded = []

    def cuModuleLoadData(self, module, cubin):
        self.loaded.append(cubin)
        return 0 if cubin == b"whole" else 200

    def cuGetErrorString(self, code, text):
        return 1


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """(driver, list of the architectures compiled for), with an empty folder."""
    driver, calls = Driver(), []

    def compile_cubin(source, options, architecture):
        calls.append(architecture)
        return source.encode()

    monkeypatch.setattr(nvrtc, "_driver", lambda: driver)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(nvrtc, "compile_cubin", compile_cubin)
    monkeypatch.setenv("DNAMAMBA_KERNEL_CACHE", str(tmp_path / "kernels"))
    return driver, calls


def test_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DNAMAMBA_KERNEL_CACHE", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path
    monkeypatch.delenv("DNAMAMBA_KERNEL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc.cache_folder() == tmp_path / "dnamamba_kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert nvrtc.cache_folder() == tmp_path / "me" / ".cache" / "dnamamba_kernels"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"dnamamba_kernels-{os.getuid()}"
    assert nvrtc.cache_folder() == own and own.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("theirs", ["writable by others", "link", "file", "another user's"])
def test_a_folder_of_somebody_else_is_not_used(theirs, monkeypatch, tmp_path):
    folder = tmp_path / "dnamamba_kernels-7"
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if theirs == "link":
        folder.symlink_to(tmp_path / "elsewhere")
    elif theirs == "file":
        folder.write_bytes(b"")
    else:
        folder.mkdir(mode=0o700)
        folder.chmod(0o770 if theirs == "writable by others" else 0o700)
    if theirs == "another user's":
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    nvrtc._own_folder.cache_clear()
    found = nvrtc._own_folder(folder)
    assert found != folder and found.stat().st_mode & 0o777 == 0o700
    assert nvrtc._own_folder(folder) == found  # one a process


def test_a_file_that_does_not_load_is_compiled_again(compiled):
    driver, calls = compiled
    assert isinstance(nvrtc.load_cubin("whole", [], "sm_90"), ctypes.c_void_p)
    nvrtc.load_cubin("whole", [], "sm_90")
    assert calls == ["sm_90"]
    path = nvrtc.cubin_path("whole", [], "sm_90")
    path.write_bytes(b"who")
    nvrtc.load_cubin("whole", [], "sm_90")
    assert calls == ["sm_90"] * 2
    assert driver.loaded == [b"whole", b"whole", b"who", b"whole"]
    assert path.read_bytes() == b"whole"


def test_what_never_loads_is_an_error_after_one_more_try(compiled):
    driver, _ = compiled
    with pytest.raises(RuntimeError, match="CUDA driver error 200 while loading the compiled kernels"):
        nvrtc.load_cubin("broken", [], "sm_90")
    assert len(driver.loaded) == 2


class Contexts:
    """A driver that takes calls in one context, and whose calling thread may have another or none."""

    def __init__(self, right=7, current=None):
        self.right, self.current, self.taken = right, current, []

    def cuCtxSetCurrent(self, context):
        self.current = context.value
        return 0

    def _take(self, name):
        if self.current is None:
            return nvrtc.INVALID_CONTEXT
        if self.current != self.right:
            return 400
        self.taken.append(name)
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        return self._take("attribute")

    def cuLaunchKernel(self, *launch):
        return self._take("launch")

    def cuGetErrorString(self, code, text):
        return 1


@pytest.mark.parametrize("current", [None, 7])
def test_a_thread_without_a_context_gets_the_modules(monkeypatch, current):
    driver = Contexts(current=current)
    monkeypatch.setattr(nvrtc, "_driver", lambda: driver)
    kernel = nvrtc.Kernel(ctypes.c_void_p(1), "scan", ctypes.c_void_p(7))
    kernel(1, 32, 0, ctypes.c_void_p(), ctypes.c_int(3))
    assert driver.taken == ["launch"] and driver.current == 7
    driver.current = current
    kernel(1, 32, 50_000, ctypes.c_void_p(), ctypes.c_int(3))
    assert driver.taken == ["launch", "attribute", "launch"]


@pytest.mark.parametrize(("driver", "code"), [(Contexts(current=8), 400), (Contexts(right=9), 400)])
def test_another_context_stays_an_error(monkeypatch, driver, code):
    """No call is tried in another context than the module's, and a current one is left alone."""
    before = driver.current
    monkeypatch.setattr(nvrtc, "_driver", lambda: driver)
    kernel = nvrtc.Kernel(ctypes.c_void_p(1), "scan", ctypes.c_void_p(7))
    with pytest.raises(RuntimeError, match=f"CUDA driver error {code} while launching scan"):
        kernel(1, 32, 0, ctypes.c_void_p())
    assert driver.taken == [] and driver.current == (before or 7)
