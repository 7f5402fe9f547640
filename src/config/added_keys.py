"""Options that were added after commit 25be8f1: what a configuration means that does not have them yet."""

ABSENT: dict[str, object] = {
    "task": None,
    "src.data.folder.Folder.images": None,
    "src.data.folder.Folder.image_column": None,
    "src.data.folder.Folder.caption_column": None,
    "src.data.folder.Folder.separator": None,
    "src.fusion.srau.SRAU.encoder_form": "early",
}
