"""Files that are opened, locked and replaced on all systems alike:

- `open_movable(path, flags, mode)`: a descriptor, as `os.open` gives one, of a file that others may meanwhile rename,
  replace or delete. Raises OSError;
- `replace(source, target)`: give a file another name, in place of a file that has it, in one step. Both may be open, by
  `open_movable`. Raises OSError;
- `lock(descriptor, wait)`: take the lock on a file, which ends with the last descriptor of this opening, or with the
  process. False where another opening has it; with `wait` that does not happen. Raises OSError where the file system
  has no locks;
- `lock_holder(folder)`: a descriptor that stands for a folder, to be locked and closed. Raises OSError.
"""

import sys

if sys.platform == "win32":
    from penstock.system.files_windows import lock, lock_holder, open_movable, replace
else:
    from penstock.system.files_posix import lock, lock_holder, open_movable, replace

__all__ = ["lock", "lock_holder", "open_movable", "replace"]
