import hashlib
import tarfile
from pathlib import Path

from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.sources.folder import find_files


def test_the_content_of_a_file_is_its_hash_also_in_a_tar_file(tmp_path: Path):
    data = bytes(range(256)) * 5000
    (tmp_path / "a.png").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "b.png")
    (member,) = find_files(str(tmp_path / "x.tar"), "--images").names
    expected = hashlib.blake2b(data, digest_size=16).digest()
    for name in (str(tmp_path / "a.png"), member):
        assert content_of(name).tobytes() == expected
    assert content_of(str(tmp_path / "gone.png")).tolist() == [0, 0]
