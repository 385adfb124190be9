//! A module in a form that no name, number or order of instructions changes.

use std::collections::HashMap;
use std::fmt::Write;

use xla::HloModuleProto;

/// A protobuf message in text form.
#[derive(Default)]
struct Message(Vec<(String, Field)>);

enum Field {
    Value(String),
    Message(Message),
}

impl Message {
    /// The lines up to the end of this message.
    fn read<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Self {
        let mut fields = vec![];
        while let Some(line) = lines.next().map(str::trim).filter(|line| *line != "}") {
            fields.push(match line.split_once(": ") {
                Some((name, value)) => (name.to_owned(), Field::Value(value.to_owned())),
                None => (line.trim_end_matches(" {").to_owned(), Field::Message(Self::read(lines))),
            });
        }
        Self(fields)
    }

    fn messages(&self, name: &str) -> impl Iterator<Item = &Message> {
        self.0.iter().filter_map(move |(field, value)| match value {
            Field::Message(message) if field == name => Some(message),
            _ => None,
        })
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(move |(field, value)| match value {
            Field::Value(value) if field == name => Some(value.as_str()),
            _ => None,
        })
    }

    /// A number; one that isn't written is 0.
    fn number(&self, name: &str) -> &str {
        self.values(name).next().unwrap_or("0")
    }

    /// Its fields but those of `left_out`, here and within.
    fn text(&self, left_out: &[&str]) -> String {
        let fields = self.0.iter().filter(|(name, _)| !left_out.contains(&name.as_str()));
        let fields = fields.map(|(name, field)| match field {
            Field::Value(value) => format!("{name}:{value}"),
            Field::Message(message) => format!("{name}{{{}}}", message.text(left_out)),
        });
        fields.collect::<Vec<_>>().join(" ")
    }
}

/// What a module computes: its interface, then a line for each value that its result depends on, the same value once,
/// operands before what takes them and in its order.
pub fn canonical(module: &HloModuleProto) -> Vec<String> {
    let text = module.to_pbtxt().expect("a module can be written");
    let module = Message::read(&mut text.lines());
    let computations = module.messages("computations").map(|one| (one.number("id"), one)).collect();
    let mut lines = vec![];
    for name in ["host_program_shape", "input_output_alias"] {
        lines.extend(module.messages(name).map(|part| format!("{name} {}", part.text(&["parameter_names"]))));
    }
    lines.extend(Values::of(module.number("entry_computation_id"), &computations));
    lines
}

type Computations<'a> = HashMap<&'a str, &'a Message>;

struct Values<'a> {
    computations: &'a Computations<'a>,
    instructions: HashMap<&'a str, &'a Message>,
    /// Place of each instruction in `lines`, and of each line.
    places: HashMap<&'a str, usize>,
    by_line: HashMap<String, usize>,
    lines: Vec<String>,
}

/// What tells instructions apart without a difference in meaning, or is followed by itself.
const LEFT_OUT: [&str; 5] = ["name", "id", "metadata", "operand_ids", "called_computation_ids"];

impl<'a> Values<'a> {
    fn of(id: &'a str, computations: &'a Computations<'a>) -> Vec<String> {
        let computation = computations[id];
        let instructions = computation.messages("instructions").map(|one| (one.number("id"), one));
        let mut values = Self {
            computations,
            instructions: instructions.collect(),
            places: HashMap::new(),
            by_line: HashMap::new(),
            lines: vec![],
        };
        let mut parameters = computation.messages("instructions").collect::<Vec<_>>();
        parameters.retain(|one| one.values("opcode").eq(["\"parameter\""]));
        parameters.sort_by_key(|one| one.number("parameter_number").parse::<usize>().unwrap_or(0));
        parameters.into_iter().for_each(|one| _ = values.place(one.number("id")));
        let root = values.place(computation.number("root_id"));
        values.lines.push(format!("root {root}"));
        values.lines
    }

    /// Its operands; a reshape of a reshape is one of what that takes.
    fn operands(&self, id: &'a str) -> Vec<&'a str> {
        let operands = self.instructions[id].values("operand_ids");
        let skipped = |mut operand: &'a str| {
            while self.is_reshape(id) && self.is_reshape(operand) {
                operand = self.instructions[operand].number("operand_ids");
            }
            operand
        };
        operands.map(skipped).collect()
    }

    fn is_reshape(&self, id: &str) -> bool {
        self.instructions[id].values("opcode").eq(["\"reshape\""])
    }

    /// What a reshape gives back unchanged.
    fn unchanged(&self, id: &'a str) -> Option<&'a str> {
        let shape = |id: &str| {
            self.instructions[id].messages("shape").map(|shape| shape.text(&[])).collect::<Vec<_>>()
        };
        let operand = self.operands(id).first().copied()?;
        (self.is_reshape(id) && shape(operand) == shape(id)).then_some(operand)
    }

    fn place(&mut self, id: &'a str) -> usize {
        if let Some(place) = self.places.get(id) {
            return *place;
        }
        let instruction = self.instructions[id];
        if let Some(same) = self.unchanged(id) {
            let place = self.place(same);
            self.places.insert(id, place);
            return place;
        }
        let operands = self.operands(id).into_iter().map(|id| self.place(id)).collect::<Vec<_>>();
        let called = instruction.values("called_computation_ids");
        let called = called.map(|id| Values::of(id, self.computations).join("; ")).collect::<Vec<_>>();
        let line = format!("{} of {operands:?} calling {called:?}", instruction.text(&LEFT_OUT));
        let next = self.lines.len();
        let place = *self.by_line.entry(line.clone()).or_insert(next);
        if place == next {
            self.lines.push(line);
        }
        self.places.insert(id, place);
        place
    }
}

/// A module in text form with the last dimension the minor one everywhere, as ours has it: XLA's builder gives what it
/// transposes the layout of its input, transposed as well.
pub fn row_major(text: &str) -> String {
    let (mut whole, mut order) = (String::new(), vec![]);
    for line in text.lines() {
        if let Some((_, dim)) = line.split_once("minor_to_major: ") {
            order.push(dim.parse::<usize>().expect("a dimension"));
            continue;
        }
        order.sort_unstable_by(|a, b| b.cmp(a));
        order.drain(..).for_each(|dim| _ = writeln!(whole, "minor_to_major: {dim}"));
        whole.push_str(line);
        whole.push('\n');
    }
    whole
}

/// The first line in which two modules differ.
pub fn difference(a: &HloModuleProto, b: &HloModuleProto) -> Option<String> {
    let (a, b) = (canonical(a), canonical(b));
    let differing = a.iter().zip(&b).enumerate().find(|(_, (a, b))| a != b);
    match differing {
        Some((i, (a, b))) => {
            // Lines are long where they call computations.
            let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count().saturating_sub(200);
            let part = |line: &str| {
                String::from_utf8_lossy(&line.as_bytes()[same..]).chars().take(600).collect::<String>()
            };
            Some(format!("line {i}, from {same} on:\n  {}\n  {}", part(a), part(b)))
        }
        None => (a.len() != b.len()).then(|| format!("{} and {} lines", a.len(), b.len())),
    }
}

/// What makes another module is seen; names, order and repetition don't.
#[test]
fn differences_are_seen() {
    let module = |text: &str| {
        let text = format!(
            "HloModule m\nadd {{\n a = f32[] parameter(0)\n b = f32[] parameter(1)\n ROOT r = f32[] add(a, b)\n}}\n\
             ENTRY e {{\n x = f32[4] parameter(0)\n y = f32[4] parameter(1)\n {text}\n}}"
        );
        HloModuleProto::parse_and_return_unverified_module(text.as_bytes()).unwrap()
    };
    let texts = [
        "ROOT r = f32[4] subtract(x, y)",
        "ROOT r = f32[4] subtract(y, x)",
        "ROOT r = f32[2] slice(x), slice={[0:4:2]}",
        "ROOT r = f32[2] slice(x), slice={[0:2]}",
        "z = f32[] constant(0)\n ROOT r = f32[] reduce(x, z), dimensions={0}, to_apply=add",
        "z = f32[] constant(1)\n ROOT r = f32[] reduce(x, z), dimensions={0}, to_apply=add",
        "p = f32[4] add(x, y)\n ROOT r = f32[4] multiply(p, p)",
    ];
    for (i, a) in texts.iter().enumerate() {
        for (j, b) in texts.iter().enumerate() {
            assert_eq!(difference(&module(a), &module(b)).is_none(), i == j, "{a}\n{b}");
        }
    }
    let twice = "q = f32[4] add(x, y)\n p = f32[4] add(x, y)\n ROOT s = f32[4] multiply(p, q)";
    assert_eq!(difference(&module(texts[6]), &module(twice)), None);
}
