#!/usr/bin/env bash
# Every GPU test and benchmark of the project within nine minutes, in pieces that can be called one by one:
#
#     benchmarks/gpu.sh                             # tests objective views step (and cifar, where --data is given)
#     benchmarks/gpu.sh objective step              # some of them
#     benchmarks/gpu.sh --data cifar-10/ cifar      # ResNet-18, 100 epochs, k-NN and linear scores; a folder or a name
#     benchmarks/gpu.sh --device cpu --quick        # a rehearsal without a GPU: everything once, on tiny sizes
#
# Writes gpu-<piece>.json for every piece, with the hardware's name, the exit code, the seconds, and what the benchmark
# found, and the log beside it, to --out (benchmarks/results). A piece that takes too long is ended (exit code 124), and
# what it found until then is kept: objective writes after every shape, step after every case, and cifar's training is
# stopped in time to score the epochs that it reached. PYTHON names the interpreter. Needs lightly and kornia.
set -uo pipefail

python=${PYTHON:-python} device=cuda quick='' data='' out='' pieces=()
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift ;;
        --data) data=$2; shift ;;
        --out) out=$(realpath -m "$2"); shift ;;
        --quick) quick=--quick ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;;
        tests | objective | views | step | cifar) pieces+=("$1") ;;
        *) echo "gpu.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
    esac
    shift
done
[ ! -e "$data" ] || data=$(realpath "$data") # what is no path here is the name of a data set
[[ $python != */* ]] || python=$(realpath -s "$python") # the link itself: it is how a virtual environment is found
cd "$(dirname "$0")/.."
out=${out:-$PWD/benchmarks/results}
[ ${#pieces[@]} -gt 0 ] || pieces=(tests objective views step ${data:+cifar})
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Seconds after which a piece is ended; together eight and a half minutes, and half a minute is spent between them.
declare -A limit=([tests]=70 [objective]=40 [views]=60 [step]=105 [cifar]=230)
[ "$device" = cuda ] || for piece in "${!limit[@]}"; do limit[$piece]=1200; done
training_s=$((limit[cifar] - 60)) # the rest is for saving and scoring

tests() { BARLOW_TEST_DEVICE=$device "$python" -m pytest -q -m gpu $(grep -rl --include='*.py' 'mark\.gpu' tests); }
objective() { "$python" benchmarks/objective.py --device "$device" $quick --out "$work"; }
views() { "$python" benchmarks/views.py --device "$device" $quick --out "$work"; }
step() { "$python" -m benchmarks.train_step --device "$device" $quick --out "$work"; }
cifar() {
    [ -n "$data" ] || { echo "cifar needs --data" >&2; return 2; }
    local run=$work/run settings=(--epochs 100 --encoder resnet18 --projector 2048 2048 2048 --log-every 100)
    [ -z "$quick" ] || settings=(--epochs 1 --encoder resnet10-narrow --projector 64 64)
    # Foreground: in the process group of the piece, which is ended as a whole. Asked to end, the run saves what it has.
    timeout --foreground --kill-after 20 "$training_s" "$python" -m barlow pretrain "$data" --out "$run" --device "$device" \
        --method barlow-twins "${settings[@]}"
    local code=$?
    case $code in 0 | 124 | 137) ;; *) return "$code" ;; esac
    [ "$code" -eq 0 ] || echo "training was stopped after $training_s s; scoring what it reached"
    found "$run"
    local protocol
    for protocol in knn linear; do
        "$python" -m barlow evaluate "$run" --data "$data" --protocols "$protocol" --device "$device" || return
        found "$run"
    done
    return "$code"
}
found() {
    "$python" - "$1" "$work/cifar.json" <<'END'
import json, sys
from barlow import Run
run = Run(sys.argv[1])
facts, rates = run.facts, [line["images_per_s"] for line in run.metrics("epoch")]
found = {"epochs_asked": run.config.training.epochs, "epochs_reached": facts.get("step", 0) / facts["steps_per_epoch"],
         "images_per_s": sorted(rates)[len(rates) // 2] if rates else None, "validations": run.metrics("validation"),
         "evaluations": run.evaluations(), "facts": facts}
json.dump(found, open(sys.argv[2], "w"))
END
}
export -f tests objective views step cifar found
export python device quick data work training_s

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
