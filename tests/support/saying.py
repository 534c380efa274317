"""Programs that say what becomes of them, by files in a ``folder`` that is named before this part of them."""

SAYING = """
import os, signal, sys, time
from pathlib import Path
def came(name, text=""):
    (folder / f".{name}").write_text(text)
    os.rename(folder / f".{name}", folder / name)
def wait(*names):
    end = time.monotonic() + 30
    while time.monotonic() < end and not (names and all((folder / name).exists() for name in names)):
        time.sleep(0.01)
"""
