//! Proves the parts together: the lab, the sample service, crash and fault tests.
