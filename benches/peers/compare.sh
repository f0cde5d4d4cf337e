#!/usr/bin/env bash
# Full-size models with random weights: time to the first step, whole time and peak memory, beside diffusers in one run.
# compare.sh FAMILY FOLDER STEPS SIZE (FOLDER from make_fullsize.py). Needs torch and diffusers in $PYTHON.
set -euo pipefail
family=$1 folder=$2 steps=$3 size=$4 work=$(mktemp -d)
here=$(cd "$(dirname "$0")" && pwd)
program=${INSTANTSTYLE:-$here/../../target/release/instantstyle}
lscpu | grep -E "Model name|^CPU\(s\)"; uptime
echo "diffusers: $("${PYTHON:-python3}" "$here/run_diffusers.py" "$folder" "$steps" "$size" "$work/d.safetensors" 2>/dev/null)"
"${PYTHON:-python3}" - "$program" "$folder" "$steps" "$size" "$work" <<'P'
import json, resource, subprocess, sys, time
program, folder, steps, size, work = sys.argv[1:]
start = time.time()
out = subprocess.run([program, "generate", "--model", folder, "--prompt", "a cat", "--negative-prompt", "blurry", "--steps", steps,
                      "--guidance", "5", "--width", size, "--height", size, "--seed", "42", "--json", "--quiet",
                      "--out", f"{work}/o.png", "--save-latents", f"{work}/o.safetensors"], capture_output=True, text=True)
whole = time.time() - start
assert out.returncode == 0, out.stderr
t = json.loads(out.stdout)["seconds"]
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
print(f"instantstyle: first step after {t['encode'] + t['prepare']:.2f} s, whole {whole:.1f} s, peak {peak:.2f} GiB "
      f"(mapped weights included), seconds {t}")
from safetensors.torch import load_file
a, b = (load_file(f"{work}/{n}.safetensors")["latents"] for n in "do")
print(f"latents differ by {float((a - b).norm() / a.norm()):.1e}")
P
rm -r "$work"
