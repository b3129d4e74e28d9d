import numpy as np

from debias_ssl.features.known_contents import KnownContents


def test_contents_are_found_with_their_list_and_row():
    contents = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (50, 2))
    contents[[7, 20]] = 0
    contents[30] = contents[3]
    known = KnownContents.of([(1, 100, contents[:10]), (0, 0, contents[10:])])
    for i in {*range(50)} - {7, 20, 30}:
        assert known.find(contents[i]) == ((1, 100 + i) if i < 10 else (0, i - 10))
    assert known.find(contents[30]) == (1, 103), "the first of equal ones"
    # Zeros stand for no content; half of a hash is none.
    assert known.find(np.zeros(2, dtype=np.int64)) is None
    assert known.find(contents[3] + [0, 1]) is None and known.find(contents[3] + [1, 0]) is None
    assert KnownContents.of([]).find(contents[0]) is None
