//! The JSON of `POST /flow`: a flow event or an array of them, in any of three
//! shapes (spec section 5.2), to [`FlowEvent`]s and back to glowd's own shape.
//! Pure.
//!
//! The shapes are those of the 2024 glowd, of flowd-go, and glowd's own; they do
//! not contradict each other, so an object may mix them. Keys are compared without
//! regard to case, as Go does. Nothing is guessed: an unknown or repeated key, a
//! missing field, a wrong type and a value out of range are problems, and all of
//! them are reported, by flow and field.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess};
use serde::Serialize;

use super::flow_fields::{self as fields, Field, Name, Raw, RawValue};
use crate::flow::{FlowEvent, FlowId, FlowState, Protocol, Tag};
use crate::registry::{Names, Registry};

/// The most flow events in one body.
pub const MAX_FLOWS: usize = 10_000;
/// The most problems that are reported of one body.
pub const MAX_PROBLEMS: usize = 100;

/// What a good body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flows {
    /// The events in their order.
    pub events: Vec<FlowEvent>,
    /// Whether they came as an array; else there is exactly one.
    pub array: bool,
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// In one sentence.
    pub error: String,
    /// In detail; empty if the body is not JSON at all, or not of flows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// What is wrong with a field of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The flow's place in the array, from 0.
    pub index: usize,
    /// The field, by its name in glowd's own shape, or an unknown key.
    pub field: String,
    /// Why.
    pub message: String,
}

/// The flow events that a body says.
///
/// # Errors
/// All that is wrong with it; then nothing of it is good.
pub fn parse(body: &[u8], names: &Names) -> Result<Flows, Rejection> {
    let mut judge = Judge::new(names);
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed = BodySeed(&mut judge).deserialize(&mut json).and_then(|()| json.end());
    if let Err(error) = parsed {
        let what =
            if error.is_data() { "the body is not of flows" } else { "the body is not JSON" };
        return Err(Rejection { error: format!("{what}: {error}"), problems: Vec::new() });
    }
    let Judge { events, problems, bad, all_problems, array, .. } = judge;
    if bad == 0 {
        return Ok(Flows { events, array });
    }
    let mut error = match (array, bad) {
        (false, _) => "the flow is bad".to_owned(),
        (true, 1) => format!("1 of {} flows is bad", events.len() + bad),
        (true, _) => format!("{bad} of {} flows are bad", events.len() + bad),
    };
    if all_problems > problems.len() {
        error += &format!("; the first {} of {all_problems} problems follow", problems.len());
    }
    Err(Rejection { error, problems })
}

/// Appends the events in glowd's own shape, as [`parse`] takes it.
pub fn write(events: &[FlowEvent], array: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(if array { b"[" } else { b"" });
    for (index, event) in events.iter().enumerate() {
        out.extend_from_slice(if index > 0 { b"," } else { b"" });
        write_event(event, out);
    }
    out.extend_from_slice(if array { b"]" } else { b"" });
}

fn write_event(event: &FlowEvent, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        r#"{{"state":"{}","protocol":"{}","src":"{}","dst":"{}","experiment":{},"activity":{}"#,
        event.state.name(),
        event.id.protocol(),
        event.id.src(),
        event.id.dst(),
        event.tag.experiment(),
        event.tag.activity()
    );
    if let Some(application) = &event.application {
        out.extend_from_slice(br#","application":"#);
        let _ = serde_json::to_writer(&mut *out, &**application);
    }
    if let Some(time) = event.time {
        let _ = write!(out, r#","{}Time":"{time}""#, event.state.name());
    }
    out.push(b'}');
}

/// Gathers the events and the problems while the body is read, so that neither
/// needs the body as a tree.
struct Judge<'n> {
    names: &'n Names,
    registry: Arc<Registry>,
    events: Vec<FlowEvent>,
    array: bool,
    bad: usize,
    problems: Vec<Problem>,
    all_problems: usize,
}

impl<'n> Judge<'n> {
    fn new(names: &'n Names) -> Self {
        Judge {
            names,
            registry: names.get(),
            events: Vec::new(),
            array: false,
            bad: 0,
            problems: Vec::new(),
            all_problems: 0,
        }
    }

    fn problem(&mut self, field: &str, message: String) {
        self.all_problems += 1;
        if self.problems.len() < MAX_PROBLEMS {
            let index = self.events.len() + self.bad;
            self.problems.push(Problem { index, field: field.to_owned(), message });
        }
    }

    /// The value of a field that has to be there, if it is good.
    fn required<T>(
        &mut self,
        draft: &Draft<'_>,
        field: Field,
        read: impl FnOnce(&Raw<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if draft.get(field).is_none() {
            self.problem(field.name(), "is missing".into());
        }
        self.optional(draft, field, |raw| read(raw).map(Some)).flatten()
    }

    /// The value of a field; None outside: it is there and bad.
    fn optional<T>(
        &mut self,
        draft: &Draft<'_>,
        field: Field,
        read: impl FnOnce(&Raw<'_>) -> Result<Option<T>, String>,
    ) -> Option<Option<T>> {
        let Some(raw) = draft.get(field) else { return Some(None) };
        match read(raw) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(field.name(), message);
                None
            }
        }
    }

    /// Turns a draft into an event, or says all that is wrong with it.
    fn finish(&mut self, draft: &Draft<'_>) {
        let state = self.required(draft, Field::State, fields::state);
        let protocol = self.required(draft, Field::Protocol, fields::protocol);
        let src = self.required(draft, Field::Src, fields::end);
        let dst = self.required(draft, Field::Dst, fields::end);
        let registry = self.registry.clone();
        let experiment = self.required(draft, Field::Experiment, |raw| match raw {
            Raw::Text(word) => registry.experiment(fields::name(word)?),
            _ => {
                let id = fields::id(raw, "experiment", Tag::MAX_EXPERIMENT)?;
                Tag::new(id, 0).map(|_| id)
            }
        });
        // For itself, beside a partner that is always good, if that one is bad; the name
        // of an activity says nothing then.
        let partner = experiment.unwrap_or(1);
        let tag = self.required(draft, Field::Activity, |raw| match raw {
            Raw::Text(_) if experiment.is_none() => Ok(None),
            Raw::Text(word) => registry.activity(partner, fields::name(word)?).map(Some),
            _ => {
                let id = fields::id(raw, "activity", Tag::MAX_ACTIVITY)?;
                Tag::new(partner, id).map(Some)
            }
        });
        let tag = tag.flatten().filter(|_| experiment.is_some());
        if let (Some(FlowState::Start), Some(tag)) = (state, tag) {
            if let Err(message) = self.names.judge(&registry, tag, "api") {
                self.problem(Field::Activity.name(), message);
            }
        }
        let application = self.optional(draft, Field::Application, fields::application);
        let start = self.optional(draft, Field::StartTime, fields::time);
        let end = self.optional(draft, Field::EndTime, fields::time);
        let ends = src.zip(dst);
        self.optional(draft, Field::Family, |raw| fields::family(raw, ends));
        // The ends have to suit each other even if the protocol is not known.
        let id = ends.and_then(|(src, dst)| {
            let id = FlowId::new(protocol.unwrap_or(Protocol::Tcp), src, dst);
            id.map_err(|message| self.problem(Field::Dst.name(), message)).ok()
        });
        let good = self.all_problems == draft.problems_before;
        match (state, id, tag, application) {
            (Some(state), Some(id), Some(tag), Some(application)) if good => {
                let time = match state {
                    FlowState::Start | FlowState::Ongoing => start,
                    FlowState::End => end,
                };
                let time = time.flatten();
                self.events.push(FlowEvent { state, id, tag, time, application, usage: None });
            }
            _ => self.bad += 1,
        }
    }
}

/// The fields of a flow as they arrived.
#[derive(Default)]
struct Draft<'a> {
    values: [Option<Raw<'a>>; Field::COUNT],
    /// How many problems there were before it.
    problems_before: usize,
}

impl<'a> Draft<'a> {
    fn get(&self, field: Field) -> Option<&Raw<'a>> {
        self.values[field as usize].as_ref()
    }
}

/// A body: a flow or an array of flows.
struct BodySeed<'j, 'n>(&'j mut Judge<'n>);

impl<'de> DeserializeSeed<'de> for BodySeed<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> serde::de::Visitor<'de> for BodySeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow object or an array of flow objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        FlowSeed(self.0).visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut flows: A) -> Result<(), A::Error> {
        self.0.array = true;
        for _ in 0..MAX_FLOWS {
            if flows.next_element_seed(FlowSeed(self.0))?.is_none() {
                return Ok(());
            }
        }
        match flows.next_element::<IgnoredAny>()? {
            None => Ok(()),
            Some(_) => Err(A::Error::custom(format!("more than {MAX_FLOWS} flows"))),
        }
    }
}

/// A flow, which ends up in the judge's hands.
struct FlowSeed<'j, 'n>(&'j mut Judge<'n>);

impl<'de> DeserializeSeed<'de> for FlowSeed<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> serde::de::Visitor<'de> for FlowSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let judge = self.0;
        let mut draft = Draft { problems_before: judge.all_problems, ..Draft::default() };
        while let Some(Name(key)) = map.next_key()? {
            let Some(field) = Field::parse(&key) else {
                map.next_value::<IgnoredAny>()?;
                judge.problem(&fields::clipped(&key), "unknown key".into());
                continue;
            };
            let value = if field.ignored() {
                map.next_value::<IgnoredAny>().map(|_| Raw::Null)?
            } else {
                map.next_value_seed(RawValue)?
            };
            let slot = &mut draft.values[field as usize];
            if slot.is_some() {
                judge.problem(field.name(), "is there more than once".into());
            }
            *slot = Some(value);
        }
        judge.finish(&draft);
        Ok(())
    }
}

#[cfg(test)]
#[path = "flow_json_tests.rs"]
mod tests;
