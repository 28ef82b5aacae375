import pytest
from tests.peers.test_pipex_tcp import test_checksums as check
pytestmark=[pytest.mark.guest, pytest.mark.parametrize("lab",["user"],indirect=True)]
@pytest.mark.parametrize("i", range(40))
def test_rep(lab, tmp_path, i):
    try:
        check(lab, tmp_path)
    except AssertionError:
        import shutil
        for f in tmp_path.glob("*.pcap"): shutil.copy(f, f"/tmp/guestres/bad{i}-{f.name}")
        raise
