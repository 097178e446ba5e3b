"""Sources of very many files: the split costs as much for each file, however many there are."""

from pathlib import Path

from scaling.config.schema import SourceConfig
from scaling.data.encode import _more_than
from scaling.data.sources import Source, split


class _Counted(Source):
    asked = 0

    def split_unit(self, name: str) -> str:
        self.asked += 1
        return super().split_unit(name)


def _of(count: int, contents: int) -> _Counted:
    source = _Counted(0, SourceConfig(name="clips", kind="video", path=Path("clips")))
    source.identity = {f"{n:05d}.mp4": f"content {n % contents}" for n in range(count)}
    split(source, 0.1, 0)
    return source


def test_a_split_looks_at_each_file_a_few_times() -> None:
    few, many = _of(500, 500), _of(5000, 5000)
    assert (len(many.train), len(many.validation)) == (4500, 500)
    assert many.asked / 5000 < 1.5 * few.asked / 500 < 5


def test_equal_contents_stay_on_one_side() -> None:
    source = _of(500, 100)
    sides = [{source.identity[name] for name in side} for side in (source.train, source.validation)]
    assert not sides[0] & sides[1]
    assert len(source.train) + len(source.validation) == 500
    before = source.validation.copy()
    source.move_next()
    assert source.validation[: len(before)] == before
    assert len({source.identity[name] for name in source.validation[len(before) :]}) == 1
    assert not set(source.validation) & set(source.train)


def test_files_of_different_content_are_counted_as_far_as_it_takes() -> None:
    values = iter("aabbcd")
    assert _more_than(2, values)
    assert next(values) == "d"
    assert not _more_than(3, "aabbc")
