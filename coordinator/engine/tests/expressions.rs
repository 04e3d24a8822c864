//! Conditions and templates: what they can see, what they give, and where they stop.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use muster_engine::{
    ids::StepId,
    playbook::{
        Scope,
        expr::{ExprError, MAX_EXPRESSION_BYTES, eval_bool, eval_value},
        render::{RenderError, render},
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

struct World {
    inputs: Value,
    steps: BTreeMap<StepId, Arc<Value>>,
    output: Value,
}

impl World {
    fn new() -> Self {
        let numbers: Vec<u32> = (0..1000).collect();
        Self {
            inputs: json!({
                "domain": "shop.example", "environment": "dev", "replicas": 3, "ratio": 0.5, "big": u64::MAX, "debug": true,
                "hosts": ["a", "b"], "nothing": null, "namespace": "blue", "numbers": numbers, "tags": {"team": "web"},
            }),
            steps: BTreeMap::from([(
                "tls_certificate".into(),
                Arc::new(json!({"days_left": 90, "chain_valid": true, "names": ["shop.example"], "p95_ms": 12.5})),
            )]),
            output: json!({"chain_valid": true, "days_left": 45, "status": 200}),
        }
    }

    fn scope(&self) -> Scope<'_> {
        Scope { inputs: &self.inputs, steps: &self.steps, output: Some(&self.output), run: "run-1" }
    }
}

#[test]
fn conditions_that_hold() {
    let world = World::new();
    for expression in [
        "true",
        "inputs.debug",
        " output.chain_valid ",
        "output.days_left >= 30",
        "steps.tls_certificate.output.days_left > output.days_left",
        "steps.tls_certificate.output.p95_ms < 50",
        "inputs.environment != 'prod' && inputs.replicas == 3",
        "inputs.replicas * 2 + 1 == 7",
        "inputs.replicas > 2.5",
        "inputs.big > 1",
        "'a' in inputs.hosts",
        "'team' in inputs.tags",
        "inputs.hosts.all(h, size(h) == 1)",
        "inputs.numbers.exists(n, n == 999)",
        "inputs.numbers.filter(n, n > 10).map(n, n * 2).all(n, n < 2000)",
        "size(inputs.hosts) == 2 && inputs.hosts[0] == 'a'",
        "has(inputs.domain) && !has(inputs.missing)",
        "has(steps.tls_certificate.output) && !has(steps.skipped.output)",
        "inputs.domain.endsWith('.example')",
        "inputs.domain.matches('^[a-z]+[.]example$')",
        "inputs.nothing == null",
        "inputs.namespace == 'blue'",
        "run.id == 'run-1'",
        "' Linux\\n'.trim() == 'Linux' && 'aB'.upperAscii() == 'AB' && 'aB'.lowerAscii() == 'ab'",
        "inputs.hosts.map(h, h + '.example').join(', ') == 'a.example, b.example' && [].join('x') == ''",
        "inputs['domain'] == 'shop.example'",
        "inputs.environment == 'prod' ? false : true",
        "inputs.debug || inputs.missing > 1",
    ] {
        assert_eq!(eval_bool(expression, &world.scope()), Ok(true), "{expression}");
    }
}

#[test]
fn conditions_that_cannot_be_judged() {
    let world = World::new();
    for (expression, expected) in [
        ("inputs.replicas", "a condition has to be true or false, this one is a number"),
        ("inputs.domain", "a condition has to be true or false, this one is a string"),
        ("inputs.hosts", "a condition has to be true or false, this one is a list"),
        ("1 + 1", "a condition has to be true or false, this one is a number"),
        ("inputs.missing", "No such key: missing"),
        ("steps.skipped.output.ok", "No such key: output"),
        ("steps.tls_certificate.state == 'x'", "No such key: state"),
        ("nobody == 1", "Undeclared reference to 'nobody'"),
        ("steps == 1", "Undeclared reference to 'steps'"),
        ("", "there is no expression (at character 1)"),
        ("1 +", "mismatched input 'the end' expecting expression (at character 4)"),
        ("output.days_left / 0 == 1", "Division by zero of Int(45)"),
        ("9223372036854775807 + 1 > 0", "Overflow"),
        ("inputs.hosts.all(h, inputs.hosts.exists(g, g == h))", "can't stand inside one another"),
        ("inputs.numbers.join(',') == ''", "it joins strings alone"),
        ("inputs.numbers.all(n, n in inputs.numbers)", "the expression looks at too many values"),
    ] {
        let error = eval_bool(expression, &world.scope()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expression}: {error}");
    }
    let long = World { inputs: json!({"long": "x".repeat(100_000)}), ..World::new() };
    let error = eval_bool("[1, 2, 3, 4].map(n, 'a').join(inputs.long) == ''", &long.scope()).unwrap_err().to_string();
    assert!(error.contains("the result is too long"), "{error}");
    let scope = Scope { output: None, ..world.scope() };
    assert!(eval_bool("output.chain_valid", &scope).is_err(), "there is no output outside of verify");
}

#[test]
fn nothing_is_too_deep_or_too_long_for_a_small_stack() {
    let texts = [
        "(".repeat(10_000),
        "[".repeat(4000),
        "!".repeat(4000) + "true",
        "-".repeat(4000) + "1",
        "1".to_owned() + &"+1".repeat(2000),
        "1".to_owned() + &"-1".repeat(22) + "== -21",
        "[".repeat(23) + "1" + &"]".repeat(23) + "== 1 || true",
        "a".to_owned() + &".a".repeat(2000),
        "a".to_owned() + &"[0]".repeat(1300),
        "f()".to_owned() + &".a".repeat(1300),
        "true".to_owned() + &"?true:true".repeat(400),
        "true".to_owned() + &" && true".repeat(500),
        "{'a':".repeat(800),
        "a.map(x,".repeat(500),
        "f(".repeat(2000),
        "\"".repeat(4000),
        "x".repeat(MAX_EXPRESSION_BYTES + 1),
        "'ä€𐍈".repeat(300),
        "((((((((((((((((((((((((((((((((((1))))))))))))))))))))))))))))))))))".to_owned(),
    ];
    std::thread::Builder::new()
        .stack_size(1536 * 1024)
        .spawn(move || {
            let world = World::new();
            for text in texts {
                let start = &text[..text.char_indices().nth(12).map_or(text.len(), |(at, _)| at)];
                match eval_value(&text, &world.scope()) {
                    Ok(value) => assert!(value == json!(true) || value == json!(1), "{start}"),
                    Err(ExprError::Syntax { .. } | ExprError::Limit(_)) => {}
                    Err(error) => panic!("{start}: {error}"),
                }
            }
        })
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn a_lone_expression_keeps_its_type() {
    let world = World::new();
    for (template, expected) in [
        ("{{ inputs.replicas }}", json!(3)),
        ("{{inputs.debug}}", json!(true)),
        ("{{ inputs.hosts }}", json!(["a", "b"])),
        ("{{ inputs.nothing }}", json!(null)),
        ("{{ inputs.big }}", json!(u64::MAX)),
        ("{{ inputs.replicas + 1 }}", json!(4)),
        ("{{ {'a': inputs.ratio} }}", json!({"a": 0.5})),
        (
            "{{ steps.tls_certificate.output }}",
            json!({"days_left": 90, "chain_valid": true, "names": ["shop.example"], "p95_ms": 12.5}),
        ),
        ("{{ inputs.hosts.map(h, h + '.example') }}", json!(["a.example", "b.example"])),
        ("{{ '}}' }}", json!("}}")),
        ("{{ '{{' }}", json!("{{")),
        ("{{ run.id }}", json!("run-1")),
        ("{{ run }}", json!({"id": "run-1"})),
    ] {
        assert_eq!(render(&json!(template), &world.scope()).unwrap().into_owned(), expected, "{template}");
    }
}

#[test]
fn a_longer_text_is_written_out() {
    let world = World::new();
    let with = json!({
        "address": "{{ inputs.domain }}:443",
        "args": ["--replicas={{ inputs.replicas }}", "--ratio={{ inputs.ratio }}", "{{ inputs.debug }}!", 7, null],
        "plain": "{% braces } of others %}",
        "both": "{{ inputs.domain + '/' + run.id }} and {{ size(inputs.hosts) }}",
    });
    let rendered = render(&with, &world.scope()).unwrap();
    assert_eq!(
        *rendered,
        json!({
            "address": "shop.example:443",
            "args": ["--replicas=3", "--ratio=0.5", "true!", 7, null],
            "plain": "{% braces } of others %}",
            "both": "shop.example/run-1 and 2",
        })
    );
}

#[test]
fn what_has_no_braces_is_borrowed() {
    let world = World::new();
    let with = json!({"command": "echo", "args": ["{ } }} {%", 1, {"a": [true]}]});
    assert!(matches!(render(&with, &world.scope()), Ok(Cow::Borrowed(same)) if std::ptr::eq(same, &raw const with)));
}

#[test]
fn templates_that_cannot_be_rendered() {
    let world = World::new();
    for (with, expected) in [
        (json!({"a": ["x", "{{ inputs.missing }}"]}), "with.a[1]: {{ inputs.missing }}: No such key: missing"),
        (json!({"a": "{{ inputs.domain"}), "with.a: a {{ is not closed"),
        (json!({"a": "{{ 'x }}"}), "with.a: a {{ is not closed"),
        (
            json!({"a": "hosts {{ inputs.hosts }}"}),
            "with.a: {{ inputs.hosts }} is a list and can't stand inside a text",
        ),
        (json!({"a": "{{ inputs.nothing }}!"}), "with.a: {{ inputs.nothing }} is null and can't stand inside a text"),
        (json!({"a": "{{ inputs.domain | upper }}"}), "with.a: {{ inputs.domain | upper }}: "),
        (json!("{{ b'ab' }}"), "with: {{ b'ab' }}: a value of bytes can't be written as JSON"),
        (
            json!("{{ 1.0 / 0.0 }}"),
            "with: {{ 1.0 / 0.0 }}: a number that is infinite, or none at all, can't be written as JSON",
        ),
    ] {
        let error = render(&with, &world.scope()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{with}: {error}");
    }
    let large = World { inputs: json!({"text": "x".repeat(100_000)}), ..World::new() };
    let with = json!(vec!["{{ inputs.text }}"; 3]);
    assert_eq!(render(&with, &large.scope()), Err(RenderError::TooLarge { path: "with[2]".to_owned() }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_an_expression_panic(text in "\\PC{0,60}") {
        let world = World::new();
        prop_assert!(!broke_off(eval_bool(&text, &world.scope())));
        let _ = render(&json!(format!("{{{{ {text} }}}} {text}")), &world.scope());
    }

    #[test]
    fn no_words_make_an_expression_panic(
        words in proptest::collection::vec(proptest::sample::select(&WORDS[..]), 0..20),
    ) {
        let world = World::new();
        prop_assert!(!broke_off(eval_value(&words.concat(), &world.scope())));
    }
}

/// Whether the library panicked and was caught.
fn broke_off<T>(result: Result<T, ExprError>) -> bool {
    result.is_err_and(|error| error.to_string().contains("broke off"))
}

/// What expressions are made of.
const WORDS: [&str; 44] = [
    "inputs",
    "steps",
    "output",
    ".",
    "domain",
    "numbers",
    "hosts",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "?",
    ":",
    ",",
    "1",
    "0",
    "'s'",
    " + ",
    " - ",
    " * ",
    " / ",
    " % ",
    "!",
    " && ",
    " || ",
    " == ",
    " < ",
    " in ",
    ".all(x, ",
    ".map(x, ",
    "has(",
    "size(",
    "x",
    "9223372036854775807",
    "1.5",
    "-",
    "null",
    "true",
    "b'\\xff'",
    "18446744073709551615u",
    "string(",
    "int(",
];
