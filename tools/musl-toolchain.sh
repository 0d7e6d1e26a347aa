#!/bin/bash
# Makes, from Debian 12's packages alone, a Rust toolchain that has the standard library
# for musl: for machines on which "rustup target add" cannot download it, and for the
# smallest binary. Needs what `tools/deps musl-toolchain` installs; takes about a minute,
# and nothing if DIR has that toolchain already.
#
#     tools/musl-toolchain.sh DIR && make static MUSL_TOOLCHAIN=DIR
set -euo pipefail

arch=$(uname -m)
target=$arch-unknown-linux-musl
host=$arch-unknown-linux-gnu
rustlib=/usr/lib/rustlib
source=$rustlib/src/rust/library
dir=$(realpath -m "${1:?usage: tools/musl-toolchain.sh DIR}")
lib=$dir/lib/rustlib/$target/lib
self=$lib/self-contained
work=$dir/build

# Written last, so what has it is complete; made by this script from that compiler.
stamp="$(/usr/bin/rustc --version), $(cksum <"$0")"
if [ -e "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
    exit 0
fi
rm -rf "$lib" "$work" "${dir:?}/bin" "$dir/stamp"
mkdir -p "$self" "$dir/bin" "$work"

# The standard library, from the crates that its source package contains (those of its
# tests are not among them, which is what -Zavoid-dev-deps is for), with the settings that
# rust's own build uses for it, but for two that make the binary 290 KB smaller: for size,
# as the rest of it, and without what prints backtraces, since a stripped binary has no
# names for them. Its panic messages name files: as in rust's own builds not by where they
# are on this machine.
env -u RUSTC -u CARGO_BUILD_RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS \
    PATH=/usr/bin:/bin RUSTC_BOOTSTRAP=1 __CARGO_DEFAULT_LIB_METADATA=musl \
    RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes --remap-path-prefix=$source=library" \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_DEBUG=0 \
    CARGO_PROFILE_RELEASE_OPT_LEVEL=s \
    cargo build -Zavoid-dev-deps --release --locked --offline --target "$target" --target-dir "$work" \
    --config 'source.crates-io.replace-with = "vendored"' \
    --config "source.vendored.directory = \"$source/vendor\"" \
    --manifest-path "$source/sysroot/Cargo.toml" --features panic-unwind,optimize_for_size
cp "$work/$target"/release/deps/*.rlib "$lib"

# What rustup delivers beside it: musl itself, and an unwinder.
cp "/usr/lib/$arch-linux-musl"/*crt[1in].o "/usr/lib/$arch-linux-musl/libc.a" "$self"
for object in crtbegin.o crtbeginS.o crtend.o crtendS.o; do
    cp "$(gcc -print-file-name=$object)" "$self"
done
cp /usr/lib/llvm-14/lib/libunwind.a "$self"
# Debian compiled libunwind for glibc, with _FORTIFY_SOURCE.
musl-gcc -Os -xc -c -o "$work/fortify.o" - <<'C'
#include <stdarg.h>
#include <stdio.h>
int __fprintf_chk(FILE *f, int flag, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vfprintf(f, fmt, ap);
	va_end(ap);
	return n;
}
C
ar rD "$self/libunwind.a" "$work/fortify.o"
rm -rf "$work"

# A toolchain around it: Debian's compiler, with this folder as its sysroot.
ln -sfn "$rustlib/$host" "$dir/lib/rustlib/$host"
ln -sfn /usr/bin/cargo "$dir/bin/cargo"
printf '#!/bin/sh\nexec /usr/bin/rustc --sysroot=%s "$@"\n' "$dir" >"$dir/rustc"
chmod +x "$dir/rustc"
mv "$dir/rustc" "$dir/bin/rustc"
echo "$stamp" >"$dir/stamp"
