#!/usr/bin/env bash
# Trains methods in the settings of a suite of configs/suites/, over seeds 0 to 4, and puts their rows into docs/leaderboard.md.
#   bash scripts/leaderboard/suite.sh digits-lt                        # the methods of the suite; started again, it goes on
#   bash scripts/leaderboard/suite.sh digits-lt --methods my_method.Mine
#   bash scripts/leaderboard/suite.sh features-lt --variants mine.yaml --jobs 2
# Further flags are those of `debias-ssl compare`. Labels alone are trained beside them in each setting.
set -euo pipefail
suite=${1:?the suite: $(ls "$(dirname "$0")/../../configs/suites" | xargs)}
folder="$(dirname "$0")/../../configs/suites/$suite"
shift
[[ " $*" == *" --methods"* || " $*" == *" --variants"* ]] || set -- --variants "$folder/methods.yaml" "$@"
debias-ssl compare --config "$folder/config.yaml" --settings "$folder/settings.yaml" --seeds 0,1,2,3,4 --resume \
    --out "runs/suites/$suite" "$@"
python "$(dirname "$0")/leaderboard.py" "runs/suites/$suite"
