//! The model layer by layer, as Keras' `model.summary()` prints it.

use std::fmt::Write;

use super::ClassifierConfig;

/// One line of the table.
struct Row {
    layer: String,
    output: String,
    parameters: usize,
}

impl ClassifierConfig {
    /// The table of layers, output shapes and parameter counts, and the total.
    pub fn summary(&self) -> String {
        let rows = self.summary_rows();
        let mut text =
            format!("{:<34} {:<22} {:>14}\n{}\n", "Layer", "Output shape", "Param #", "=".repeat(72));
        for Row { layer, output, parameters } in &rows {
            let _ = writeln!(text, "{layer:<34} {output:<22} {:>14}", thousands(*parameters));
        }
        let total = rows.iter().map(|row| row.parameters).sum::<usize>();
        let pooler = self.parameters_under("bert.pooler.");
        let _ = write!(
            text,
            "{}\nTotal params: {}\nTrained by the loss: {}\nKept for the checkpoint, unused (pooler): {}",
            "=".repeat(72),
            thousands(total),
            thousands(total - pooler),
            thousands(pooler)
        );
        text
    }

    fn summary_rows(&self) -> Vec<Row> {
        let (seq, hidden) = (self.max_length, self.bert.hidden_size);
        let states = format!("[batch, {seq}, {hidden}]");
        let row = |layer: &str, output: &str, prefix: &str| Row {
            layer: layer.to_owned(),
            output: output.to_owned(),
            parameters: if prefix.is_empty() { 0 } else { self.parameters_under(prefix) },
        };
        let mut rows = vec![
            row("input_ids", &format!("s32[batch, {seq}]"), ""),
            row("bert.embeddings", &states, "bert.embeddings."),
        ];
        for i in 0..self.bert.num_hidden_layers {
            let layer = format!("bert.encoder.layer.{i}");
            rows.push(row(&layer, &states, &format!("{layer}.")));
        }
        rows.push(row("bert.pooler", "(unused)", "bert.pooler."));
        rows.push(row("flatten", &format!("[batch, {}]", seq * hidden), ""));
        for (i, width) in self.head.hidden.iter().enumerate() {
            let output = format!("[batch, {width}]");
            let dense = format!("dense_{}", i + 1);
            rows.push(row(&format!("{dense} (relu)"), &output, &format!("{dense}.")));
            rows.push(row(&format!("dropout_{} ({})", i + 1, self.head.dropout), &output, ""));
        }
        let last = format!("dense_{}", self.head.hidden.len() + 1);
        let output = format!("[batch, {}]", self.head.num_classes);
        rows.push(row(&format!("{last} (softplus)"), &output, &format!("{last}.")));
        rows
    }

    fn parameters_under(&self, prefix: &str) -> usize {
        let weights = self.weights();
        let under = weights.iter().filter(|weight| weight.name.starts_with(prefix));
        under.map(|weight| weight.shape.num_elements()).sum()
    }
}

/// `233131676` as `233,131,676`.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
