#!/usr/bin/env python3
"""A whole agent, written from docs/agents.md: it says hello. `pip install nats-py`, then `NATS_URL=… python3 greeter.py`."""
import asyncio, json, os, time, uuid
import nats

AGENT, INSTANCE = "greeter-1", f"i-{uuid.uuid4().hex}"  # the same after every restart; new at every start
SPACE = "muster.v1.default"
TASKS = f"{SPACE}.task.{AGENT}.{INSTANCE}"
OFFER = {"protocol": 1, "agent": AGENT, "instance": INSTANCE, "role": "greeter", "slots": 8, "actions": [
    {"name": "greet.say", "version": "1.0.0", "summary": "Says hello.", "idempotent": True}]}
me = {}  # the answer to our registration: cluster, term, beat_every_ms
offset = 0  # the coordinator's clock less ours
seen = {}  # every key that was answered -> its answer
held = {}  # key -> the job (work, then report) that goes on for it
draining = False

def clock():  # milliseconds; does not jump, and goes on while the machine sleeps
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

async def ask(subject, message):
    """A request; its answer, or {} if none came. Every answer may tell the time and give orders."""
    global offset, draining
    before = clock()
    try:
        answer = json.loads((await nc.request(subject, json.dumps(message).encode(), timeout=5)).data)
    except (nats.errors.Error, OSError, ValueError):
        return {}
    offset = answer["now_ms"] - before if "now_ms" in answer else offset
    draining = draining or any(o["order"] == "drain" for o in answer.get("orders", []))
    return answer  # the order `cancel` is not for us: our work is over in no time

def holds():
    return [{"run": run, "step": step, "attempt": attempt} for run, step, attempt in held]

async def register():  # duty 1
    global me
    wait = 1
    while (answer := await ask(f"{SPACE}.register.{AGENT}", OFFER | {"holds": holds()})).get("answer") != "registered":
        if answer.get("answer") == "refused":
            raise SystemExit(f"the coordinator refuses this agent: {answer.get('why')}")
        await asyncio.sleep({"id_in_use": 5, "retry": 1}.get(answer.get("answer"), wait))
        wait = min(2 * wait, 10)
    me = answer

async def on_task(message):  # duty 2: answer at once; the same key always gets the same answer
    task = json.loads(message.data)
    key = task["run"], task["step"], task["attempt"]
    if (task["cluster"], task["term"]) != (me.get("cluster"), me.get("term")):
        return  # from a coordinator that does not own the work (any more)
    if key not in seen:
        seen[key] = judge(task)
        if seen[key]["answer"] == "accepted":
            held[key] = asyncio.create_task(job(task, key))  # starts when this function waits or ends
    await message.respond(json.dumps(seen[key]).encode())

def judge(task):
    if clock() + offset - task["sent_at_ms"] > task["start_within_ms"]:
        return {"answer": "busy"}
    if draining:
        return {"answer": "draining"}
    if task["action"] != "greet.say" or task["version"].split(".")[0] != "1":
        return {"answer": "refused", "why": "no such action"}
    return {"answer": "accepted"}  # never "busy": the work itself takes no time

def work(params):
    if not isinstance(params.get("name"), str):
        return {"result": "failed", "error": "permanent", "message": "greet.say needs `name`, a text: name whom to greet"}
    return {"result": "succeeded", "output": {"greeting": f"hello, {params['name']}"}}

async def job(task, key):  # duty 3: the work, then its report until the answer is final
    print("begin", *key, flush=True)
    report = {"cluster": task["cluster"], "instance": INSTANCE, "run": key[0], "step": key[1], "attempt": key[2],
              "report": {"kind": "finished", "outcome": work(task["with"])}}
    wait = 1
    while (answer := (await ask(task["report_subject"], report)).get("answer")) not in ("recorded", "stale", "conflict", "gone"):
        print("report again", *key, answer, flush=True)
        await asyncio.sleep(wait)
        wait = min(2 * wait, 30)
    print("end", *key, answer, flush=True)
    del held[key]
    asyncio.get_running_loop().call_later(600, seen.pop, key)  # late copies come within ten minutes

async def main():
    global nc
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), name=AGENT, inbox_prefix=f"_INBOX_{AGENT}",
                            max_reconnect_attempts=-1, reconnect_time_wait=1)  # answers PING, connects again for ever
    await nc.subscribe(TASKS, cb=on_task)  # before registering: a task may follow at once
    await register()
    while held or not draining:  # duty 4: beat, also while at work
        beat = {"cluster": me["cluster"], "instance": INSTANCE, "holds": holds(), "draining": draining}
        next_beat = asyncio.create_task(asyncio.sleep(me["beat_every_ms"] / 1000))
        if (await ask(f"{SPACE}.beat.{AGENT}", beat)).get("register_again"):
            await register()
        await next_beat

asyncio.run(main())
