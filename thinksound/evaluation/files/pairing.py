"""Pairing of files in several folders that belong to the same clip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.clips import Skipped
from ...data.tables import read_table
from ...errors import InputError

SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".w64", ".caf")
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg"),
    *(".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif"),
)


@dataclass(frozen=True)
class Clip:
    """The files and the caption that share one name."""

    name: str
    generated: Path
    reference: Path | None = None
    video: Path | None = None  # the file with its frames, which may be the generated one
    caption: str | None = None


def find_clips(
    generated: Path,
    reference: Path | None = None,
    captions: Path | None = None,
    videos: Path | None = None,
) -> tuple[list[Clip], list[Skipped]]:
    """Pair the files of folders by their names without the ending.

    A sound is preferred to a video of the same name. Files of other kinds are ignored.

    generated: folder of sounds, or of videos with sound.
    reference: the same for the true sounds; clips without one are skipped.
    captions: a table as for `read_table`; a clip without a caption is kept.
    videos: folder of the videos of generated sounds; a generated video has its own frames.
    Returns the clips in the order of their names, and the files that are skipped.
    Raises InputError if a folder is missing or holds no usable file, if the table cannot be read or names a
    clip twice, and if the table or the videos match none of the clips.
    """
    sounds, skipped = _media(generated, (SOUNDS, VIDEOS))
    if not sounds and not skipped:
        raise InputError(f"{generated}: no sound or video; give the folder of the generated ones")
    truths: dict[str, Path] = {}
    if reference is not None:
        truths, unclear = _media(reference, (SOUNDS, VIDEOS))
        skipped += unclear
        listed = {entry.name for entry in skipped}
        alone = [_alone(name, truths[name], generated) for name in truths if name not in sounds]
        alone += [_alone(name, sounds[name], reference) for name in sounds if name not in truths]
        skipped += [entry for entry in alone if entry.name not in listed]
        sounds = {name: path for name, path in sounds.items() if name in truths}
    if not sounds:
        raise InputError(
            f"{generated}: no clip can be used; the first, {skipped[0].name}: {skipped[0].reason}; "
            "files belong together that have the same name before the ending"
        )
    pictures, _ = _media(generated, (VIDEOS,))
    if videos is not None:
        given, unclear = _media(videos, (VIDEOS,))
        if not given.keys() & sounds.keys():
            raise InputError(f"{videos}: no video has the name of a clip, such as {_first(sounds)}")
        pictures |= given
        skipped += unclear
    pictures |= {name: path for name, path in sounds.items() if path.suffix.lower() in VIDEOS}
    texts: dict[str, str] = {}
    if captions is not None:
        for row in read_table(captions, generated):
            if row.path.stem in texts:
                raise InputError(f"{captions}: names {row.path.stem} twice; keep one row")
            texts[row.path.stem] = row.caption
        if not texts.keys() & sounds.keys():
            raise InputError(f"{captions}: no row names a clip, such as {_first(sounds)}")
    clips = [
        Clip(name, path, truths.get(name), pictures.get(name), texts.get(name))
        for name, path in sounds.items()
    ]
    return clips, skipped


def _first(clips: dict[str, Path]) -> str:
    return next(iter(clips))


def _alone(name: str, path: Path, folder: Path) -> Skipped:
    return Skipped(name, f"{path}: nothing of this name in {folder}")


def _media(folder: Path, kinds: Sequence[Collection[str]]) -> tuple[dict[str, Path], list[Skipped]]:
    """Name -> file, and the names that several files share; earlier ``kinds`` of endings have priority."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: not a folder that can be read ({error.strerror})") from None
    same_name: dict[str, list[Path]] = {}
    for kind in kinds:
        better = set(same_name)
        for path in paths:
            if path.suffix.lower() in kind and path.stem not in better:
                same_name.setdefault(path.stem, []).append(path)
    found = {name: same[0] for name, same in sorted(same_name.items()) if len(same) == 1}
    unclear = [
        Skipped(name, f"{folder}: {' and '.join(path.name for path in same)} have the same name; keep one")
        for name, same in same_name.items()
        if len(same) > 1
    ]
    return found, unclear
