# shellcheck shell=bash
# Sourced by the scripts beside it: puts Penstock into .venv, and returns at once where that is up to date.
# Works in bash 3.2, which macOS has.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

say() { echo "${0##*/}: $*" >&2; }

has() { command -v "$1" >/dev/null 2>&1; }

# missing WHAT APT DNF PACMAN BREW: ends with one line that says what to install, and how on this system.
missing() {
    local how="install it with your package manager, then start this again" sudo="sudo "
    [ "$(id -u)" -ne 0 ] || sudo=""
    if has apt-get; then
        how="${sudo}apt-get install -y $2"
    elif has dnf; then
        how="${sudo}dnf install -y $3"
    elif has pacman; then
        how="${sudo}pacman -S --needed $4"
    elif has brew; then
        how="brew install $5"
    fi
    say "$1: $how"
    exit 1
}

# What the given Python lacks, of all that a virtual environment and an extension module need.
lacks() {
    "$1" - <<'EOF'
import importlib.util, os, sysconfig
lacking = [] if importlib.util.find_spec("ensurepip") else ["the module ensurepip"]
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    lacking.append("the header Python.h")
print(" and ".join(lacking))
EOF
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

find_python() {
    local candidate recent="" lacking
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if is_recent "$candidate"; then
            recent=${recent:-$candidate}
            [ -n "$(lacks "$candidate")" ] || { echo "$candidate" && return; }
        fi
    done
    [ -n "$recent" ] || missing "no Python 3.10 or newer" "python3 python3-venv python3-dev" "python3 python3-devel" python python
    lacking=$(lacks "$recent")
    recent=$("$recent" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    missing "$recent lacks $lacking" "$recent-venv $recent-dev" "$recent-devel" python python
}

make_venv() {
    local python
    is_recent "$venv/bin/python" && return
    python=$(find_python)
    "$python" -m venv --clear "$venv"
}

pip() { "$venv/bin/python" -m pip -qq --no-input --disable-pip-version-check "$@"; }

compiles_cxx20() {
    printf '#include <%s>\n' bit concepts span | "$1" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null
}

# Leaves CXX unset where the build is to take the compiler in the ziglang wheel (tools/building).
find_compiler() {
    local candidate
    if [ "$(uname)" = Darwin ] && ! xcode-select -p >/dev/null 2>&1; then
        say "no C++20 compiler: xcode-select --install"
        exit 1
    fi
    for candidate in ${CXX:-} c++ g++ clang++; do
        if has "$candidate" && compiles_cxx20 "$candidate"; then
            export CXX=$candidate
            return
        fi
    done
    case $(uname -sm) in
        "Linux x86_64" | "Linux aarch64")
            say "no C++20 compiler found: taking the one in the ziglang wheel (100 MB, 600 MB unpacked and at work)"
            unset CXX
            ;;
        *) missing "no C++20 compiler" g++ gcc-c++ gcc gcc ;;
    esac
}

# What is installed already, by the state of the sources it was made from.
state_of() { (cd "$root" && pwd && find "$@" -type f -exec cksum {} + | LC_ALL=C sort) | cksum; }
is_done() { [ "$(cat "$venv/.done-$1" 2>/dev/null)" = "$2" ]; }
set_done() { echo "$2" >"$venv/.done-$1"; }

# The tools of the tests and checks, those to build without a fresh environment each time among them.
install_dev() {
    local state
    state=$(state_of pyproject.toml)
    is_done dev "$state" && return
    say "installing the development tools into .venv"
    pip install "pip>=25.1"
    pip install --group "$root/pyproject.toml:dev"
    set_done dev "$state"
}

# Penstock itself, editable: changes in Python files need no new installation, others and moved files are noticed here.
# With a compiler and the development tools the build keeps its objects; otherwise it leaves nothing but the result.
install_penstock() {
    local state keep="" build
    state=$(state_of pyproject.toml CMakeLists.txt cpp)$(cd "$root" && find src -name '*.py' | LC_ALL=C sort | cksum)
    is_done penstock "$state" && return
    find_compiler
    say "building Penstock into .venv, which takes a minute or two"
    [ -z "${CXX:-}" ] || [ ! -e "$venv/.done-dev" ] || keep=1
    build=${CXX:-zig}
    build=$venv/build/${build//\//-}
    mkdir -p "$build"
    PATH=$venv/bin:$PATH TMPDIR=$venv/build \
        pip install ${keep:+--no-build-isolation} --config-settings=build-dir="$build" --editable "$root"
    [ -n "$keep" ] || rm -rf "$venv/build"
    set_done penstock "$state"
}

# The packages of the extras that are named. `pip install -e ".[serve]"` would build Penstock once more, for which the
# compiler may be gone.
install_extras() {
    local extra packages package wanted=()
    for extra in "$@"; do
        packages=$(packages_of "$extra")
        [ -n "$packages" ] || { say "there is no extra $extra: pyproject.toml lists them" && exit 2; }
        while IFS= read -r package; do wanted+=("$package"); done <<<"$packages"
    done
    [ ${#wanted[@]} -eq 0 ] || pip install "${wanted[@]}"
}

# What the installed Penstock asks for in one of its extras, a requirement a line; nothing where it has no such extra.
packages_of() {
    "$venv/bin/python" - "$1" <<'EOF'
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for requirement in map(Requirement, requires("penstock") or ()):
    marker, requirement.marker = requirement.marker, None
    if marker and marker.evaluate({"extra": sys.argv[1]}) and not marker.evaluate({"extra": ""}):
        print(requirement)
EOF
}
