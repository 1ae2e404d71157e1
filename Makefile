# The commands are in xtask/; here are only their names and settings.
.DEFAULT_GOAL := help
.PHONY: help run cluster chat stop test verify chaos roll soak attack fuzz bench seams upgrade clean purge
REPLICAS ?= 3
PROOF = $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(SEED),--seed $(SEED))
# The files that speed up a second build would be half of the space that a first one takes.
ifdef CI
export CARGO_INCREMENTAL := 0
endif
# Cargo shows how it compiles the commands the first time; later it takes a moment.
XTASK := $(or $(CARGO_TARGET_DIR),target)/xtask/xtask
DEV := @command -v cargo >/dev/null || { echo "There is no cargo here: install the Rust toolchain (1.95 or later)." >&2; exit 1; }; \
	exec cargo run $(if $(wildcard $(XTASK)),--quiet) --locked --profile xtask --package xtask --

help:     ## this list
	$(DEV) help

run:      ## one replica with all it needs: Redis, a model, and an address to point a browser at
	$(DEV) run

cluster:  ## the same with REPLICAS=3 behind nginx, round robin
	$(DEV) cluster --replicas $(REPLICAS)

chat:     ## talk to what runs, in this terminal
	$(DEV) chat

stop:     ## stop what `make run` or `make cluster` started
	$(DEV) stop

test:     ## formatting, lints, licences, manifests and all tests (FILTER=part of a name)
	$(DEV) test $(if $(FILTER),--filter $(FILTER))

verify:   ## what takes longer than `make test`: other people's clients and tokens, two versions side by side, a real fault for each alert, writers that die under a browser, the image and compose under load, a minute of each fuzz target (FILTER=clients|tokens|versions|visibility|page|deployment|fuzz)
	$(DEV) verify $(if $(FILTER),--filter $(FILTER))

chaos:    ## break replicas, hosts and Redis under load and check every character (SEED= MINUTES=10 REDIS=sentinel|cluster SESSIONS=200)
	$(DEV) chaos $(PROOF) $(if $(REDIS),--redis $(REDIS))

roll:     ## replace every replica ten times under load; nobody may notice (SEED= SESSIONS=200)
	$(DEV) roll $(if $(SESSIONS),--sessions $(SESSIONS)) $(if $(SEED),--seed $(SEED))

soak:     ## the same for long, over sentinels and over a cluster, and `make roll` (SEED= MINUTES=30 SESSIONS=200)
	$(DEV) soak $(PROOF)

attack:   ## attack a fleet beside 100 honest sessions: floods, slow connections, garbage; nobody may notice (SEED= MINUTES=0.5 each)
	$(DEV) attack $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

fuzz:     ## run every parser of what strangers send on random bytes (MINUTES=10 each)
	$(DEV) fuzz $(if $(MINUTES),--minutes $(MINUTES))

bench:    ## what jarvis adds to the model host: time to first token, rate, CPU, memory, many sockets
	$(DEV) bench

seams:    ## break 100 answers of a real model, in ten scripts, off in the middle and look at the seams (SEED= ANSWERS=100)
	$(DEV) seams $(if $(ANSWERS),--answers $(ANSWERS)) $(if $(SEED),--seed $(SEED))

upgrade:  ## replace the replicas of docker-compose.yml by ones of this folder, one at a time; nobody may notice
	$(DEV) upgrade

clean:    ## remove what was built and fetched; the history stays
	$(DEV) clean

purge:    ## the same, and the history
	$(DEV) clean --history
