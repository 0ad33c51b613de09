# shellcheck shell=bash
# Sourced, after lib.sh, by the scripts that compile for ARM64 on another CPU and run what comes out under an emulator
# (QEMU's user mode). That tells which bits come out, and nothing of speed. Debian's packages are taken for the compiler
# and for ARM64's Python, so all but the digests needs Debian.

arm=$root/build/arm64
arm_compiler=aarch64-linux-gnu-g++
arm_packages="g++-aarch64-linux-gnu qemu-user-static"

arm_emulator() {
    local candidate
    for candidate in qemu-aarch64-static qemu-aarch64; do
        command -v "$candidate" && return
    done
    return 1
}

has_arm() { has "$arm_compiler" && arm_emulator >/dev/null; }

# As root, from Debian or Ubuntu; it is no error where they cannot be had.
install_arm() {
    has_arm && return
    [ "$(id -u)" -eq 0 ] && has apt-get || return 0
    say "installing $arm_packages"
    # shellcheck disable=SC2086
    { apt-get update && apt-get install -y --no-install-recommends $arm_packages; } >/dev/null || say "apt-get could not"
}

# build_arm TARGET PYTHONS_HEADERS: into "$arm/build".
build_arm() {
    CXX=$arm_compiler "$venv/bin/cmake" -S "$root" -B "$arm/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$venv/bin/ninja" \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DPython_EXECUTABLE="$venv/bin/python" -DPython_INCLUDE_DIR="$2" \
        -DCMAKE_CXX_FLAGS="-idirafter $arm/system/usr/include" -DNB_SUFFIX=.so -DNB_SUFFIX_S=.so >/dev/null
    "$venv/bin/cmake" --build "$arm/build" --target "$1" >/dev/null
}

# arm_apt ARGUMENTS: apt-get for ARM64, which leaves this system's packages alone.
arm_apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$arm/apt" -o Dir::State::status="$arm/apt/status" \
        -o Dir::Cache="$arm/apt/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1 "$@"
}

# A folder with Python and its headers, as Debian lays them out.
make_arm_system() {
    [ -e "$arm/system/usr/bin/python3" ] && return
    say "fetching Python for ARM64 into build/arm64/system"
    mkdir -p "$arm/apt/lists/partial" "$arm/apt/cache/archives/partial" "$arm/system"
    : >"$arm/apt/status"
    arm_apt update
    arm_apt install --download-only -y --no-install-recommends python3 libpython3-dev libstdc++6
    local package
    for package in "$arm"/apt/cache/archives/*.deb; do dpkg -x "$package" "$arm/system"; done
    rm -rf "$arm/apt"
}

# The release of that Python, as 3.11.
arm_release() { local link; link=$(readlink "$arm/system/usr/bin/python3") && echo "${link#python}"; }

# What the installed Penstock asks for, a requirement a line.
required_packages() {
    "$venv/bin/python" - <<'END'
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

print(*(requirement for requirement in map(Requirement, requires("penstock") or ()) if requirement.marker is None), sep="\n")
END
}

# Packages for it, and Penstock, whose files in Python are those of the source tree.
make_arm_site() {
    local release packages=() entry
    release=$(arm_release)
    mapfile -t packages < <(required_packages)
    packages+=(pytest hypothesis safetensors)
    if [ ! -e "$arm/.done-site" ] || [ "$(cat "$arm/.done-site")" != "$release ${packages[*]}" ]; then
        say "fetching packages for ARM64 into build/arm64/site"
        rm -rf "$arm/site"
        pip install --target "$arm/site" --only-binary :all: --python-version "$release" --implementation cp \
            --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 "${packages[@]}"
        echo "$release ${packages[*]}" >"$arm/.done-site"
    fi
    rm -rf "$arm/site/penstock" "$arm"/site/penstock-*.dist-info
    mkdir "$arm/site/penstock"
    for entry in "$root"/src/penstock/*; do
        case $entry in *.so | *.pyi) ;; *) ln -s "$entry" "$arm/site/penstock" ;; esac
    done
    cp -r "$venv"/lib/python3*/site-packages/penstock-*.dist-info "$arm/site"
}

make_arm_module() {
    build_arm _core "$arm/system/usr/include/python$(arm_release)"
    ln -sf "$arm/build/_core.so" "$arm/site/penstock/_core.so"
}

# write_arm_python CPU: "$arm/python" is ARM64's Python with those packages, on such a CPU.
write_arm_python() {
    cat >"$arm/python" <<END
#!/bin/sh
PYTHONPATH=$arm/site\${PYTHONPATH:+:\$PYTHONPATH} exec $(arm_emulator) -cpu $1 -L $arm/system $arm/system/usr/bin/python3 "\$@"
END
    chmod +x "$arm/python"
    # Tests start Python by sys.executable, which this system could not run.
    echo "import sys; sys.executable = sys._base_executable = '$arm/python'" >"$arm/site/sitecustomize.py"
}

# All of it: "$arm/python" can test Penstock then.
make_arm() {
    install_arm
    has_arm && has apt-get || { say "no $arm_compiler, qemu-aarch64 and apt-get: on Debian, apt-get install -y $arm_packages" && exit 1; }
    make_arm_system
    make_arm_site
    say "compiling for ARM64"
    make_arm_module
    write_arm_python "${PENSTOCK_ARM_CPU:-cortex-a76}"
}
