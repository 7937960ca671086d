from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees another's caches, the person's data sets, or the network."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BARLOW_CACHE", str(folder))
    monkeypatch.setenv("BARLOW_DATA", str(folder))
    monkeypatch.setenv("BARLOW_OFFLINE", "1")
    return folder
