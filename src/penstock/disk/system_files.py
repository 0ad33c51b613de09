"""What a system has for reading files past its page cache: `system` is the module of this one. Each has

- `ALIGNMENT`: direct reads begin and end at multiples of this, and so do their buffers;
- `open_file(path, direct)`: a file to read, as a number. Raises OSError, EINVAL where its file system has no direct
  reads;
- `read_at(file, view, offset)`: how many bytes were read into the view; fewer than there is room for where the file
  ends, and maybe elsewhere; 0 at its end. Several threads may read at once. Raises OSError;
- `close_file(file)`;
- `drop(file, offset, nbytes)`: what of this range is in the page cache leaves it, up to the end of the file where
  `nbytes` is 0; descriptors of Python's own files will do as well. Where a system has no such thing, nothing happens;
- `sync(descriptor)`: what was written is on the disk, for a power failure too. Raises OSError.
"""

import sys

if sys.platform == "win32":
    from penstock.disk import files_windows as system
elif sys.platform == "darwin":
    from penstock.disk import files_macos as system
else:
    from penstock.disk import files_linux as system

__all__ = ["system"]
