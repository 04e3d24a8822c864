//! Functions on texts that CEL's standard library lacks, named as in CEL's strings extension.
//!
//! Of that extension only what can't make much out of little: `replace`, written ten times in a row, can.

use cel::{
    DeclarationError, Env, ExecutionError,
    common::{
        types::{CelString, LIST_TYPE, STRING_TYPE},
        value::{CowVal, Val},
    },
};

/// Longest text that `join` gives, in bytes.
const MAX_JOINED_BYTES: usize = 256 * 1024;

/// Adds the functions to an environment.
pub(super) fn add(env: &mut Env) -> Result<(), DeclarationError> {
    cel::add_member_overload!(env, fn trim: (CelString) -> CelString)?;
    cel::add_member_overload!(env, fn lower_ascii: (CelString) -> CelString)?;
    cel::add_member_overload!(env, fn upper_ascii: (CelString) -> CelString)?;
    env.add_member_overload("join", "list.join(string)", LIST_TYPE, vec![STRING_TYPE], join)
}

fn trim(text: &CelString<'_>) -> CelString<'static> {
    text.inner().trim().to_owned().into()
}

fn lower_ascii(text: &CelString<'_>) -> CelString<'static> {
    text.inner().to_ascii_lowercase().into()
}

fn upper_ascii(text: &CelString<'_>) -> CelString<'static> {
    text.inner().to_ascii_uppercase().into()
}

/// `['a', 'b'].join(', ')` is `a, b`.
#[expect(clippy::needless_pass_by_value, reason = "the signature of every function in CEL's environment")]
fn join<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let error = |message: &str| ExecutionError::function_error("join", message);
    let [list, separator] = &args[..] else {
        return Err(error("it takes one separator"));
    };
    let separator = text(separator.as_ref()).ok_or_else(|| error("the separator is no string"))?;
    let mut items = list.as_ref().as_iterable().ok_or_else(|| error("it joins a list"))?.iter();
    let mut joined = String::new();
    let mut first = true;
    while let Some(item) = items.next() {
        let item = text(item).ok_or_else(|| error("it joins strings alone: write string(…)"))?;
        if !std::mem::replace(&mut first, false) {
            joined.push_str(separator);
        }
        joined.push_str(item);
        if joined.len() > MAX_JOINED_BYTES {
            return Err(error("the result is too long"));
        }
    }
    Ok(CowVal::owned(CelString::from(joined)))
}

fn text(value: &dyn Val) -> Option<&str> {
    value.downcast_ref::<CelString<'_>>().map(CelString::inner)
}
