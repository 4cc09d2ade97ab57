#!/usr/bin/env bash
# Checks what the native binaries contain and link.
#
#   scripts/check_symbols.sh BUILD_DIR          the kernel objects of every ISA level, those for CUDA, and _ops.so
#   scripts/check_symbols.sh --library FILE     one _ops.so, for example from a wheel
#
# Each kernel file is compiled once per ISA level. A weak symbol in such an object (an inline
# function or template with linkage) would be merged with its namesakes, and the linker might keep
# the AVX-512 body for callers on older processors. So an object may define nothing but functions
# in its own level's namespace. Objects for CUDA, where nvcc was found, may not know torch: they are to be
# compiled by a compiler that need not match torch's.
set -euo pipefail

failed=0
complain() {
    echo "check_symbols: $*" >&2
    failed=1
}

check_object() {
    local level=$1 object=$2 namespace bad
    namespace="7sumprod${#level}${level}"
    # DW.ref.__gxx_personality_v0 is a pointer for exception tables: data, the same at every level.
    bad=$(nm --defined-only "$object" | awk '$2 ~ /^[WVuvw]$/ && $3 != "DW.ref.__gxx_personality_v0"')
    [[ -z $bad ]] || complain "$object defines weak or unique symbols:"$'\n'"$(c++filt <<<"$bad")"
    bad=$(nm --defined-only --extern-only "$object" |
        awk -v own="$namespace" '$2 !~ /^[WVuvw]$/ && index($3, own) == 0')
    [[ -z $bad ]] || complain "$object defines symbols outside sumprod::$level:"$'\n'"$(c++filt <<<"$bad")"
}

check_cuda_object() {
    local bad
    if bad=$(nm --undefined-only "$1" | grep -E ' (aoti_torch_|torch_|_ZNK?(5torch|3c10|2at)[0-9])'); then
        complain "$1 uses torch:"$'\n'"$(c++filt <<<"$bad")"
    fi
}

check_library() {
    local library=$1 needed bad
    needed=$(readelf --dynamic "$library" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
    if bad=$(grep -E '^lib(python|torch_python|torch_cuda|c10_cuda|cuda|cudart)' <<<"$needed"); then
        complain "$library links" $bad
    fi
    if bad=$(readelf --dynamic "$library" | grep -E '\((RPATH|RUNPATH)\)'); then
        complain "$library searches a folder of the building machine: $bad"
    fi
    if bad=$(nm --dynamic --undefined-only "$library" | grep -E ' _?Py[A-Z_]'); then
        complain "$library uses Python:"$'\n'"$(head -5 <<<"$bad")"
    fi
    # Its own functions stay private: only the C++ runtime's may be visible.
    if bad=$(nm --dynamic --defined-only "$library" | grep ' _ZN*K*7sumprod'); then
        complain "$library exports"$'\n'"$(c++filt <<<"$bad")"
    fi
}

if [[ ${1:-} == --library && $# == 2 ]]; then
    check_library "$2"
    [[ $failed == 0 ]] && echo "check_symbols: $(basename "$2"): ok"
    exit $failed
fi
[[ $# == 1 && -d $1 ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }

count=0
for folder in "$1"/CMakeFiles/sumprod_kernels_*.dir; do
    level=${folder##*sumprod_kernels_}
    level=${level%.dir}
    while IFS= read -r object; do
        check_object "$level" "$object"
        count=$((count + 1))
    done < <(find "$folder" -name '*.o' | sort)
done
[[ $count -gt 0 ]] || complain "no kernel objects under $1"
cuda=0
if [[ -d $1/CMakeFiles/sumprod_cuda.dir ]]; then
    while IFS= read -r object; do
        check_cuda_object "$object"
        cuda=$((cuda + 1))
    done < <(find "$1/CMakeFiles/sumprod_cuda.dir" -name '*.o' | sort)
fi
library=$1/_ops.so
[[ -f $library ]] && check_library "$library" || complain "no $library"
[[ $failed == 0 ]] && echo "check_symbols: $count kernel objects, $cuda for CUDA, and _ops.so: ok"
exit $failed
