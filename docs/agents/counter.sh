#!/usr/bin/env bash
# A whole agent, written from docs/agents.md with nothing but bash, jq and a TCP connection: it counts words.
#   NATS_URL=nats://127.0.0.1:4222 ./counter.sh
set -u
export LC_ALL=C # so that ${#text} and `read -N` count bytes
trap '' PIPE    # a lost connection is an error of printf, not our end
address=${NATS_URL:-nats://127.0.0.1:4222}
address=${address#nats://}
space=muster.v1.default agent=counter-1 instance=i-$(tr -d - </proc/sys/kernel/random/uuid)
inbox=_INBOX_$agent.$instance
cluster='' term='' offset=0 beat_every=5000 draining=false
declare -A seen                            # key "run/step/attempt" -> the answer it got. Never forgotten: small, and simple
declare -A due=([register]=0) delay=() # what to send ("register", "beat" or a key) -> when, and how long to wait after that
declare -A body=() subject=()          # key -> its report that has no final answer yet, and where it goes

now() { local up; read -r up _ </proc/uptime; clock=$((10#${up/./}0)); } # ms; does not jump, goes on while the machine sleeps
publish() { printf 'PUB %s %d\r\n%s\r\n' "$1" "${#2}" "$2" >&3; }         # "SUBJECT [REPLY-TO]" PAYLOAD
# SUBJECT PAYLOAD WHAT: a request. The subject of its answer tells us what was asked, and when.
request() { publish "$1 $inbox.$3.$clock" "$2"; }
holds() { printf '%s\n' "${body[@]}" | jq -cs 'map({run, step, attempt})'; }

send() { # "register", "beat" or a key: send it (again), and say when the next time is if no answer comes
  case $1 in
    register) due[$1]=$((clock + 5000 + ${delay[$1]:=1000})) delay[$1]=$((delay[$1] < 5000 ? 2 * delay[$1] : 10000))
      request $space.register.$agent '{"protocol":1,"agent":"'$agent'","instance":"'$instance'","role":"counter","slots":8,"actions":[{"name":"count.words","version":"1.0.0","summary":"Counts words.","idempotent":true}],"holds":'"$(holds)"'}' "$1" ;;
    beat) due[$1]=$((clock + beat_every))
      printf 'PING\r\n' >&3 # a server that is gone without a word does not answer it
      request $space.beat.$agent '{"cluster":"'$cluster'","instance":"'$instance'","holds":'"$(holds)"',"draining":'$draining'}' "$1" ;;
    *) due[$1]=$((clock + 5000 + delay[$1])) delay[$1]=$((delay[$1] < 15000 ? 2 * delay[$1] : 30000))
      echo "report $1"
      request "${subject[$1]}" "${body[$1]}" "$1" ;;
  esac
}

task() { # REPLY-TO PAYLOAD: duty 2. Answer at once; the same key always gets the same answer
  local of_cluster of_term key sent within action limit to begin=false
  IFS=$'\t' read -r of_cluster of_term key sent within action limit to < <(jq -r '[.cluster, .term, "\(.run)/\(.step)/\(.attempt)",
    .sent_at_ms, .start_within_ms, "\(.action)/\(.version | split(".")[0])", .timeout_ms, .report_subject] | @tsv' <<<"$2")
  [[ $of_cluster == "$cluster" && $of_term == "$term" ]] || return 0 # from a coordinator that does not own the work (any more)
  if [[ -z ${seen[$key]-} ]]; then
    now
    if ((clock + offset - sent > within)); then seen[$key]='{"answer":"busy"}'
    elif $draining; then seen[$key]='{"answer":"draining"}'
    elif [[ $action != count.words/1 ]]; then seen[$key]='{"answer":"refused","why":"no such action"}'
    else seen[$key]='{"answer":"accepted"}' begin=true; fi
  fi
  publish "$1" "${seen[$key]}"
  if $begin; then work "$key" "$2" "$limit" "$to"; fi
}

work() { # KEY TASK TIMEOUT_MS REPORT_SUBJECT. It takes a moment; longer work belongs into a process of its own
  local outcome
  echo "begin $1"
  outcome=$(timeout "${3}e-3" jq -c '.with.text | {result: "succeeded", output: {words: [scan("\\S+")] | length}}' <<<"$2")
  case $? in
    0) ;;
    124) outcome='{"result":"failed","error":"retry","message":"counting took too long; it is tried again"}' ;;
    *) outcome='{"result":"failed","error":"permanent","message":"count.words needs `text`, a text: give the words to count"}' ;;
  esac
  body[$1]=$(jq -c '{cluster, instance: $i, run, step, attempt, report: {kind: "finished", outcome: $o}}' \
    --arg i "$instance" --argjson o "$outcome" <<<"$2")
  subject[$1]=$4 due[$1]=0 delay[$1]=1000 # duty 3: report it now, and again until the answer is final
}

answered() { # WHAT.CLOCK PAYLOAD: an answer to one of our requests
  local what=${1%.*} asked_at=${1##*.} answer of_cluster of_term every now_ms again drain why
  IFS=$'\t' read -r answer of_cluster of_term every now_ms again drain why < <(jq -r '[.answer // "-", .cluster // "-", .term // 0,
    .beat_every_ms // 0, .now_ms // 0, .register_again // false, any(.orders[]?; .order == "drain"), .why // "-"] | @tsv' <<<"$2")
  now
  if ((now_ms)); then offset=$((now_ms - asked_at)); fi
  if $drain; then draining=true; fi # the order `cancel` is not for us: our work is over in no time
  case $what/$answer in
    register/registered) cluster=$of_cluster term=$of_term beat_every=$every due[beat]=0; unset 'due[register]' 'delay[register]' ;;
    register/id_in_use) due[register]=$((clock + 5000)) ;;
    register/retry) due[register]=$((clock + 1000)) ;;
    register/refused) echo "the coordinator refuses this agent: $why" >&2; exit 1 ;;
    beat/*) if $again; then due[register]=0; fi ;;
    */recorded | */stale | */conflict | */gone) echo "end $what $answer"; unset 'due[$what]' 'delay[$what]' 'body[$what]' 'subject[$what]' ;;
    *) if [[ -n ${body[$what]-} ]]; then due[$what]=$((clock + delay[$what])); fi ;;
  esac
}

talk() { # one connection, until it breaks
  local line='' part code words payload what heard
  printf 'CONNECT {"verbose":false,"pedantic":false,"headers":false,"name":"%s","lang":"bash","version":"1"}\r\n' $agent >&3
  printf 'SUB %s 1\r\nSUB %s 2\r\n' $space.task.$agent.$instance "$inbox.>" >&3
  now; heard=$clock due[register]=0 # duty 1, also on a new connection
  while now; ((clock - heard < 30000)); do
    for what in "${!due[@]}"; do if ((due[$what] <= clock)); then send "$what" || return; fi; done # duties 3 and 4
    if $draining && ((${#body[@]} == 0)); then exit 0; fi
    IFS= read -r -t 0.5 part <&3; code=$?
    line+=$part
    if ((code > 128)); then continue; elif ((code)); then return; fi # nothing or half a line yet; the server hung up
    heard=$clock
    read -ra words <<<"${line%$'\r'}"
    line=''
    case ${words[0]-} in
      PING) printf 'PONG\r\n' >&3 ;;
      -ERR) echo "nats-server: ${words[*]}" >&2 ;;
      MSG) # the payload by its length, then its CR LF
        IFS= read -r -t 10 -N "${words[-1]}" payload <&3 && read -r -t 10 _ <&3 || return
        case ${words[2]} in 1) task "${words[3]}" "$payload" ;; 2) answered "${words[1]#"$inbox".}" "$payload" ;; esac ;;
    esac
  done
}

while :; do
  if { exec 3<>"/dev/tcp/${address%:*}/${address##*:}"; } 2>/dev/null; then talk; exec 3>&-; fi
  sleep 1
done
