//! `http`: what makes an answer a good one: its status, its headers, words in its body, and what JSON
//! pointers find there; and a count for a whole group out of one answer.
//!
//! Nothing is read that nobody expects anything of.

use hyper::header::HeaderName;
use serde_json::Value;

use super::{
    command::Count,
    http::{self, Answer, BODY_MAX},
};
use crate::{
    experiment::{HttpCheck, JsonExpect},
    units::clip,
};

/// Asks once, and judges that one answer; percentiles are for whoever asks again.
///
/// # Errors
/// What was wrong, in a sentence for people.
pub async fn ask(check: &HttpCheck) -> Result<(), String> {
    http::get(&check.url, &check.headers, check.within, async |answer| {
        judge_head(check, &answer)?;
        if !check.json.is_empty() {
            let body = http::whole(answer.into_body(), BODY_MAX).await?;
            if let Some(wanted) = &check.body {
                search(&body, wanted)?;
            }
            return judge_json(check, &parse(&body)?);
        }
        match &check.body {
            Some(wanted) => http::search(answer.into_body(), wanted).await,
            None => Ok(()),
        }
    })
    .await
}

/// Asks once for the number of ready instances, and of all where a pointer says where to find it.
///
/// # Errors
/// When the answer is not as expected, or has no such numbers.
pub async fn count(check: &HttpCheck, ready: &str, total: Option<&str>) -> Result<Count, String> {
    http::get(&check.url, &check.headers, check.within, async |answer| {
        judge_head(check, &answer)?;
        let body = http::whole(answer.into_body(), BODY_MAX).await?;
        if let Some(wanted) = &check.body {
            search(&body, wanted)?;
        }
        let document = parse(&body)?;
        judge_json(check, &document)?;
        let number = |pointer| number_at(&document, pointer);
        let count = Count { ready: number(ready)?, total: total.map(number).transpose()? };
        match count.total {
            Some(total) if count.ready > total => {
                Err(format!("counts {} ready of {total}", count.ready))
            }
            _ => Ok(count),
        }
    })
    .await
}

fn judge_head(check: &HttpCheck, answer: &Answer) -> Result<(), String> {
    judge_status(answer.status().as_u16(), &check.status)?;
    for (name, wanted) in &check.answer {
        let known = HeaderName::from_bytes(name.as_bytes()).map_err(|error| error.to_string())?;
        let mut values = answer.headers().get_all(known).iter().peekable();
        let Some(first) = values.peek().map(|value| String::from_utf8_lossy(value.as_bytes())) else {
            return Err(format!("answered without the header `{name}`"));
        };
        // A header may come several times; one of them is to be the one expected.
        let first = clip(&first);
        if !values.any(|value| value.as_bytes() == wanted.as_bytes()) {
            return Err(format!("answered with `{name}: {first}`, not `{wanted}`"));
        }
    }
    Ok(())
}

fn judge_status(got: u16, wanted: &[u16]) -> Result<(), String> {
    let right = if wanted.is_empty() { (200..300).contains(&got) } else { wanted.contains(&got) };
    if right {
        return Ok(());
    }
    let wanted: Vec<String> = wanted.iter().map(u16::to_string).collect();
    let wanted = if wanted.is_empty() { "2xx".to_owned() } else { wanted.join(" or ") };
    Err(format!("answered {got}, not {wanted}"))
}

fn search(body: &[u8], wanted: &str) -> Result<(), String> {
    if http::contains(body, wanted.as_bytes()) {
        return Ok(());
    }
    Err(format!("answered without `{wanted}`"))
}

fn parse(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| format!("answered with no JSON document: {error}"))
}

fn judge_json(check: &HttpCheck, document: &Value) -> Result<(), String> {
    for (pointer, expect) in &check.json {
        let Some(found) = document.pointer(pointer) else {
            return Err(format!("answered without anything at `{pointer}`"));
        };
        let wrong = match expect {
            JsonExpect::Is(wanted) if same(found, wanted) => None,
            JsonExpect::Is(wanted) => Some(format!("{}, not {wanted}", show(found))),
            JsonExpect::Within(bounds) => match found.as_f64() {
                Some(number) => bounds.broken_by(number),
                None => Some(format!("{}, not a number", show(found))),
            },
        };
        if let Some(wrong) = wrong {
            return Err(format!("says at `{pointer}` {wrong}"));
        }
    }
    Ok(())
}

/// Numbers are the same if their values are, however they are written.
fn same(found: &Value, wanted: &Value) -> bool {
    found == wanted
        || matches!((found, wanted), (Value::Number(_), Value::Number(_)))
            && found.as_f64() == wanted.as_f64()
            && (found.is_f64() || wanted.is_f64())
}

fn number_at(document: &Value, pointer: &str) -> Result<u32, String> {
    let found =
        document.pointer(pointer).ok_or_else(|| format!("answered without anything at `{pointer}`"))?;
    let number = found.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("says at `{pointer}` {}, not a number of instances", show(found)))
}

fn show(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        _ => clip(&value.to_string()),
    }
}
