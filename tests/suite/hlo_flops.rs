//! Counted floating-point operations against the closed form of a BERT encoder: per layer, the projections of query, key,
//! value and output take `8 b s h^2`, scores and their product with the values `4 b s^2 h`, the feed-forward part
//! `4 b s h i`; with `i = 4 h`, `24 b s h^2 + 4 b s^2 h`.

use bert_xla::hlo::Graph;
use bert_xla::model::head::DenseHeadConfig;
use bert_xla::model::{ClassifierConfig, HeadConfig, Size};
use bert_xla::step::{StepConfig, eval_step, train_step};

fn config(size: Size, batch_size: usize) -> StepConfig {
    let (bert, head) = (size.config(), HeadConfig::default());
    let model = ClassifierConfig {
        bert,
        head,
        max_length: size.max_length(),
        mask: false,
        zero_padding: false,
        freeze_padding: false,
    };
    StepConfig::new(model, batch_size, 8)
}

fn closed_form(config: &StepConfig) -> u64 {
    let (bert, head) = (&config.model.bert, DenseHeadConfig::default());
    let (b, s) = (config.rows, config.model.max_length);
    let (h, i) = (bert.hidden_size, bert.intermediate_size);
    let layer = 8 * b * s * h * h + 4 * b * s * s * h + 4 * b * s * h * i;
    let widths = [&[s * h], &head.hidden[..], &[head.num_classes]].concat();
    let dense = widths.windows(2).map(|pair| 2 * b * pair[0] * pair[1]);
    (bert.num_hidden_layers * layer + dense.sum::<usize>()) as u64
}

#[test]
fn forward_is_the_closed_form_and_training_three_times_that() {
    for (size, batch_size) in [(Size::Tiny, 3), (Size::MBert, 2)] {
        let config = config(size, batch_size);
        let flops = eval_step(&Graph::new(), &config).program.dot_flops();
        assert_eq!(flops, closed_form(&config), "{size}");
        // Each product's two gradients are products of the same size.
        assert_eq!(train_step(&Graph::new(), &config).program.dot_flops(), 3 * flops, "{size}");
    }
    // The same by hand, for bert-base with 280 tokens and the recipe's head.
    let layers = 12 * (24 * 280 * 768 * 768 + 4 * 2 * 140 * 140 * 768);
    let head = 2 * 2 * (107_520 * 512 + 512 * 440 + 440 * 4);
    assert_eq!(closed_form(&config(Size::MBert, 2)), layers + head);
}
