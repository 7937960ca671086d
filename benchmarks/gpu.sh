#!/usr/bin/env bash
# Every GPU test and benchmark of the project within nine minutes, in pieces that can be called one by one:
#
#     benchmarks/gpu.sh                             # tests objective views step (and cifar, where --data is given)
#     benchmarks/gpu.sh objective step              # some of them
#     benchmarks/gpu.sh --data cifar-10/ cifar      # ResNet-18, 100 epochs, k-NN and linear scores; a folder or a name
#     benchmarks/gpu.sh --device cpu --quick        # a rehearsal without a GPU: everything once, on tiny sizes
#
# Writes gpu-<piece>.json for every piece, with the hardware's name, the exit code, the seconds, and what the benchmark
# found, and the log beside it, to --out (benchmarks/results). PYTHON names the interpreter. Needs lightly and kornia.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python} device=cuda quick='' data='' out=benchmarks/results pieces=()
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift ;;
        --data) data=$2; shift ;;
        --out) out=$2; shift ;;
        --quick) quick=--quick ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
        tests | objective | views | step | cifar) pieces+=("$1") ;;
        *) echo "gpu.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
    shift
done
[ ${#pieces[@]} -gt 0 ] || pieces=(tests objective views step ${data:+cifar})
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Seconds after which a piece is ended; together eight and a half minutes.
declare -A limit=([tests]=70 [objective]=60 [views]=60 [step]=110 [cifar]=210)
[ "$device" = cuda ] || for piece in "${!limit[@]}"; do limit[$piece]=1200; done

tests() { BARLOW_TEST_DEVICE=$device "$python" -m pytest -q -m gpu $(grep -rl 'mark\.gpu' tests); }
objective() { "$python" benchmarks/objective.py --device "$device" --quick --out "$work"; }
views() { "$python" benchmarks/views.py --device "$device" $quick --out "$work"; }
step() { "$python" -m benchmarks.train_step --device "$device" $quick --out "$work"; }
cifar() {
    [ -n "$data" ] || { echo "cifar needs --data" >&2; return 2; }
    local run=$work/run settings=(--epochs 100 --encoder resnet18 --projector 2048 2048 2048 --log-every 100)
    [ -z "$quick" ] || settings=(--epochs 1 --encoder resnet10-narrow --projector 64 64)
    "$python" -m barlow pretrain "$data" --out "$run" --device "$device" --method mixed-barlow-twins "${settings[@]}" &&
        "$python" -m barlow evaluate "$run" --data "$data" --protocols knn linear --device "$device" || return
    "$python" - "$run" "$work/cifar.json" <<'END'
import json, sys
from barlow import Run
run = Run(sys.argv[1])
rates = [line["images_per_s"] for line in run.metrics("epoch")]
found = {"facts": run.facts, "evaluations": run.evaluations(), "images_per_s": sorted(rates)[len(rates) // 2]}
json.dump(found, open(sys.argv[2], "w"))
END
}
export -f tests objective views step cifar
export python device quick data work

status=0
for piece in "${pieces[@]}"; do
    echo "== $piece (at most ${limit[$piece]} s)"
    rm -f "$work"/*.json
    began=$(date +%s.%N)
    timeout --kill-after 10 "${limit[$piece]}" bash -c "$piece" 2>&1 | tee "$out/gpu-$piece.log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || status=1
    "$python" - "$piece" "$code" "$began" "$device" "$work" "$out/gpu-$piece.json" "$quick" <<'END'
import datetime, glob, json, platform, sys, time, torch
from benchmarks.objective import hardware
piece, code, began, device, work, out, quick = sys.argv[1:]
name = hardware(device)
found = {file.rsplit("/", 1)[1]: json.load(open(file)) for file in sorted(glob.glob(f"{work}/*.json"))}
facts = {"piece": piece, "exit_code": int(code), "seconds": round(time.time() - float(began), 1), "hardware": name,
         "cuda": torch.version.cuda, "torch": torch.__version__, "python": platform.python_version(), "quick": bool(quick),
         "date": datetime.date.today().isoformat(), "found": found}
with open(out, "w") as file:
    json.dump(facts, file, indent=1)
    file.write("\n")
print(f"== {piece}: exit code {code}, {facts['seconds']} s, {name}; {out}")
END
done
exit $status
