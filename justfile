# Everything that a change must pass.
ci:
    .ci/run

# The pictures of the README.
demo:
    cargo run --release -- demo --out demo
