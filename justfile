# Everything that a change must pass.
ci:
    .ci/run

# The kernels' tests for ARM under QEMU: see CONTRIBUTING.md.
arm:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L /usr/aarch64-linux-gnu" \
    cargo test --release -p instantstyle-kernels --target aarch64-unknown-linux-gnu

# The pictures of the README.
demo:
    cargo run --release -- demo --out demo
