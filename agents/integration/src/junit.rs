//! JUnit XML as pytest and nextest write it: each test case counted by what became of it.
//!
//! The counts that a report gives of itself are not used: a report that breaks off would still claim them.

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

/// A test that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `classname::name`, as it is found again.
    pub(crate) name: String,
    /// What it said in one line; may be empty.
    pub(crate) message: String,
}

/// What became of the tests of a report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    /// Failed, or broke in its preparation.
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// Of the passed ones: only when tried again.
    pub(crate) flaky: u64,
    /// The first failures, as many as were asked for.
    pub(crate) failures: Vec<Failure>,
}

/// So much of a failure's message is kept, in characters.
const MESSAGE: usize = 300;
/// So deep may elements lie in each other.
const DEEPEST: usize = 64;

/// A test case that is being read.
struct Case {
    name: String,
    depth: usize,
    failure: Option<String>,
    skipped: bool,
    flaky: bool,
}

/// Reads a report. The error says what is wrong with it and where.
pub(crate) fn read(text: &str, most_failures: usize) -> Result<Counts, String> {
    let mut reader = Reader::from_str(text);
    let (mut counts, mut depth, mut case) = (Counts::default(), 0_usize, None::<Case>);
    let mut rooted = false;
    loop {
        let at = reader.buffer_position();
        let wrong = |why: &dyn std::fmt::Display| format!("at byte {at}: {why}");
        match reader.read_event().map_err(|e| wrong(&e))? {
            Event::Start(element) => {
                depth += 1;
                if depth > DEEPEST {
                    return Err(wrong(&format!("elements lie deeper than {DEEPEST}")));
                }
                rooted = rooted || root(&element).map_err(|why| wrong(&why))?;
                opened(&element, depth, &mut case).map_err(|why| wrong(&why))?;
            }
            Event::Empty(element) => {
                rooted = rooted || root(&element).map_err(|why| wrong(&why))?;
                opened(&element, depth + 1, &mut case).map_err(|why| wrong(&why))?;
                closed(depth + 1, &mut case, &mut counts, most_failures);
            }
            Event::End(_) => {
                closed(depth, &mut case, &mut counts, most_failures);
                depth -= 1;
            }
            Event::Eof if depth > 0 => return Err(wrong(&"it breaks off")),
            Event::Eof if !rooted => return Err("it has no test suite".into()),
            Event::Eof => return Ok(counts),
            Event::DocType(_) => return Err(wrong(&"a document type is not read")),
            Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::GeneralRef(_) => {}
        }
    }
}

fn root(element: &BytesStart<'_>) -> Result<bool, String> {
    match element.local_name().as_ref() {
        "testsuites" | "testsuite" => Ok(true),
        other => Err(format!("it begins with <{other}>, not with <testsuites> or <testsuite>")),
    }
}

fn opened(element: &BytesStart<'_>, depth: usize, case: &mut Option<Case>) -> Result<(), String> {
    let name = element.local_name();
    match (name.as_ref(), case) {
        ("testcase", Some(outer)) => return Err(format!("a test case lies in the test case {}", outer.name)),
        ("testcase", case) => {
            let name = [attribute(element, "classname")?, attribute(element, "name")?];
            let name = name.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("::");
            *case = Some(Case { name: cut(&name), depth, failure: None, skipped: false, flaky: false });
        }
        ("failure" | "error", Some(case)) => {
            let message = attribute(element, "message")?;
            case.failure.get_or_insert_with(|| cut(&message));
        }
        ("skipped", Some(case)) => case.skipped = true,
        ("flakyFailure" | "flakyError", Some(case)) => case.flaky = true,
        _ => {}
    }
    Ok(())
}

fn closed(depth: usize, case: &mut Option<Case>, counts: &mut Counts, most_failures: usize) {
    let Some(ended) = case.take_if(|case| case.depth == depth) else { return };
    if let Some(message) = ended.failure {
        counts.failed += 1;
        if counts.failures.len() < most_failures {
            counts.failures.push(Failure { name: ended.name, message });
        }
    } else if ended.skipped {
        counts.skipped += 1;
    } else {
        counts.passed += 1;
        counts.flaky += u64::from(ended.flaky);
    }
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Result<String, String> {
    let Some(found) = element.try_get_attribute(name).map_err(|e| e.to_string())? else { return Ok(String::new()) };
    found.normalized_value(XmlVersion::Implicit1_0).map(std::borrow::Cow::into_owned).map_err(|e| e.to_string())
}

/// The first line, not too long.
fn cut(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As pytest 8 writes it.
    const PYTEST: &str = r#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest"
        errors="1" failures="1" skipped="1" tests="4" time="0.05" hostname="h"><testcase classname="test_pool"
        name="test_good" time="0.001" /><testcase classname="test_pool" name="test_bad" time="0.002"><failure
        message="AssertionError: assert 1 &lt; 0&#10;second line">def test_bad():</failure></testcase><testcase
        classname="test_pool" name="test_off"><skipped type="pytest.skip" message="not here">x</skipped></testcase><testcase
        classname="test_pool" name="test_broken"><error message="failed on setup with &quot;OSError&quot;">…</error>
        </testcase></testsuite></testsuites>"#;

    /// As nextest 0.9 writes it.
    const NEXTEST: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" uuid="0" timestamp="2026-01-07T10:00:00Z" time="0.1">
    <testsuite name="pool::api" tests="3" disabled="0" errors="0" failures="1">
        <testcase name="opens" classname="pool::api" timestamp="2026-01-07T10:00:00Z" time="0.01"></testcase>
        <testcase name="closes" classname="pool::api" time="0.02">
            <failure message="thread 'closes' panicked" type="test failure">thread</failure>
            <rerunFailure message="again" type="test failure">thread</rerunFailure>
            <system-out>&lt;testcase&gt; is only text</system-out>
        </testcase>
        <testcase name="sometimes" classname="pool::api" time="0.03">
            <flakyFailure message="once" type="test failure">thread</flakyFailure>
        </testcase>
    </testsuite>
</testsuites>"#;

    #[test]
    fn pytest_and_nextest_are_read() {
        let counts = read(PYTEST, 10).unwrap();
        assert_eq!((counts.passed, counts.failed, counts.skipped, counts.flaky), (1, 2, 1, 0));
        let failure = |name: &str, message: &str| Failure { name: name.into(), message: message.into() };
        let first = failure("test_pool::test_bad", "AssertionError: assert 1 < 0");
        assert_eq!(counts.failures, [first, failure("test_pool::test_broken", "failed on setup with \"OSError\"")]);
        let counts = read(NEXTEST, 10).unwrap();
        assert_eq!((counts.passed, counts.failed, counts.skipped, counts.flaky), (2, 1, 0, 1));
        assert_eq!(counts.failures, [failure("pool::api::closes", "thread 'closes' panicked")]);
    }

    #[test]
    fn a_list_of_failures_is_cut_and_the_count_is_not() {
        let counts = read(PYTEST, 1).unwrap();
        assert_eq!((counts.failed, counts.failures.len()), (2, 1));
    }

    #[test]
    fn a_report_that_is_none_or_breaks_off_is_refused() {
        for end in [1, 60, 200, PYTEST.len() - 1, PYTEST.len() - 20] {
            let end = (end..=PYTEST.len()).find(|at| PYTEST.is_char_boundary(*at)).unwrap();
            assert!(read(&PYTEST[..end], 10).is_err(), "cut at {end}");
        }
        for (text, why) in [
            ("", "it has no test suite"),
            ("all is well", "it has no test suite"),
            ("<html></html>", "begins with <html>"),
            ("<testsuite><testcase></testsuite>", "at byte"),
            ("<!DOCTYPE x [<!ENTITY a \"b\">]><testsuite/>", "document type"),
            (&"<testsuite>".repeat(100), "deeper"),
        ] {
            let error = read(text, 10).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
