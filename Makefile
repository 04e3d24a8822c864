# Two doors for a newcomer; everything else is cargo.
.PHONY: demo test tools

# Install what is missing of the servers and programs that tests and demo use; says what and why.
tools:
	@integration-tests/scripts/install.sh

# Everything: formats, lints, unit, conformance, real servers, crash tests, worked examples.
test: tools
	@integration-tests/scripts/test.sh

# A broken system made ready before your eyes: lab with faults, nats-server, coordinator, agents, rollout.
demo: tools
	@integration-tests/scripts/demo.sh
