//! Flags and their values.

use super::{Case, TRAIN};

fn case(command: &str, message: &str) -> Case {
    Case::new(format!("flags: {command}"), command, message)
}

fn train(flags: &str, message: &str) -> Case {
    case(&format!("{TRAIN} {flags}"), message)
}

/// In place of those of [`TRAIN`].
fn bare(flags: &str, message: &str) -> Case {
    case(&format!("train --random-weights --train {{}}/data.csv --output {{}}/new/run {flags}"), message)
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("trian", "unrecognized subcommand 'trian'"),
        case(
            "train --output {}/new/run",
            "the following required arguments were not provided: --train <FILE>",
        ),
        train("--lr 1e-5", "unexpected argument '--lr' found"),
        train("--batch-size 0", "invalid value '0' for '--batch-size <N>': 0 is not in 1..=65536"),
        train(
            "--batch-size 65537",
            "invalid value '65537' for '--batch-size <N>': 65537 is not in 1..=65536",
        ),
        train("--batch-size x", "invalid value 'x' for '--batch-size <N>': invalid digit found in string"),
        train("--batch-size=-1", "invalid value '-1' for '--batch-size <N>': invalid digit found in string"),
        train(
            "--batch-size 7 --replicas 2",
            "a batch of 7 can't be split evenly over 2 replicas; choose a --batch-size that is a \
                multiple of 2, or other --replicas",
        ),
        train(
            "--runtime none",
            "invalid value 'none' for '--runtime <RUNTIME>': `none` is none of auto, pjrt and xla",
        ),
        #[cfg(not(feature = "xla-extension"))]
        train(
            "--runtime xla",
            "invalid value 'xla' for '--runtime <RUNTIME>': this program was built without the xla runtime: \
                `cargo build --release --features xla-extension` builds it in, with XLA_EXTENSION_DIR \
                set, see docs/xla-extension.md",
        ),
        train("--replicas 0", "invalid value '0' for '--replicas <N>': 0 is not in 1..=1024"),
        train("--replicas 1025", "invalid value '1025' for '--replicas <N>': 1025 is not in 1..=1024"),
        train("--epochs 0", "invalid value '0' for '--epochs <N>': 0 is not in 1..=4294967295"),
        train("--epochs 1.5", "invalid value '1.5' for '--epochs <N>': invalid digit found in string"),
        train(
            "--epochs 5000000000",
            "invalid value '5000000000' for '--epochs <N>': 5000000000 is not in 1..=4294967295",
        ),
        train("--learning-rate 0", "--learning-rate 0: expected a positive number that a float32 can hold"),
        train(
            "--learning-rate=-1e-5",
            "--learning-rate -0.00001: expected a positive number that a float32 can hold",
        ),
        train("--weight-decay -0.1", "--weight-decay -0.1: expected a number from 0 on, such as 0.01"),
        train(
            "--learning-rate nan",
            "--learning-rate NaN: expected a positive number that a float32 can hold",
        ),
        train(
            "--learning-rate 1e39",
            "--learning-rate 1000000000000000000000000000000000000000: expected a positive number \
                that a float32 can hold",
        ),
        train(
            "--learning-rate fast",
            "invalid value 'fast' for '--learning-rate <RATE>': invalid float literal",
        ),
        train(
            "--dev-size 0",
            "can't split 400 rows with a test share of 0: the share must lie between 0 and 1; \
                choose another --dev-size, or a table of more rows",
        ),
        train(
            "--dev-size 1",
            "can't split 400 rows with a test share of 1: the share must lie between 0 and 1; \
                choose another --dev-size, or a table of more rows",
        ),
        train(
            "--dev-size nan",
            "can't split 400 rows with a test share of NaN: the share must lie between 0 and 1; \
                choose another --dev-size, or a table of more rows",
        ),
        train(
            "--dev-size 0.9999",
            "can't split 400 rows with a test share of 0.9999: both parts need a row; choose \
                another --dev-size, or a table of more rows",
        ),
        train("--split-seed=-1", "invalid value '-1' for '--split-seed <SEED>': -1 is not in 0..=4294967295"),
        train("--seed 1e3", "invalid value '1e3' for '--seed <SEED>': invalid digit found in string"),
        train(
            "--labels ''",
            "invalid value '' for '--labels <LABEL=CLASS,...|auto>': labels ``: `` has no `=`; \
                expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        train(
            "--labels a",
            "invalid value 'a' for '--labels <LABEL=CLASS,...|auto>': labels `a`: `a` has no `=`; \
                expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        train(
            "--labels a=x",
            "invalid value 'a=x' for '--labels <LABEL=CLASS,...|auto>': labels `a=x`: class `x` is not \
                a number from 0 to 9999; expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        train(
            "--labels a=0,a=1",
            "invalid value 'a=0,a=1' for '--labels <LABEL=CLASS,...|auto>': labels `a=0,a=1`: label \
                `a` is given twice; expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        train(
            "--labels a=0,b=0",
            "invalid value 'a=0,b=0' for '--labels <LABEL=CLASS,...|auto>': labels `a=0,b=0`: class 0 \
                is given twice; expected LABEL=CLASS,... such as -1=1,0=2,1=3",
        ),
        train(
            "--labels a=10000",
            "invalid value 'a=10000' for '--labels <LABEL=CLASS,...|auto>': labels `a=10000`: class \
                `10000` is not a number from 0 to 9999; expected LABEL=CLASS,... such as \
                -1=1,0=2,1=3",
        ),
        train("--num-classes 0", "invalid value '0' for '--num-classes <N>': 0 is not in 1..=10000"),
        train("--num-classes 3", "--num-classes 3: --labels -1=1,0=2,1=3 needs 4"),
        train(
            "--num-classes 10001",
            "invalid value '10001' for '--num-classes <N>': 10001 is not in 1..=10000",
        ),
        train("--dropout 1", "--dropout 1: expected a share from 0 to less than 1"),
        train("--dropout=-0.1", "--dropout -0.1: expected a share from 0 to less than 1"),
        train("--dropout nan", "--dropout NaN: expected a share from 0 to less than 1"),
        train("--encoder-dropout 2", "--encoder-dropout 2: expected a share from 0 to less than 1"),
        train(
            "--separator ;;",
            "invalid value ';;' for '--separator <CHAR>': separator `;;`: expected one ASCII \
                character, or \\t",
        ),
        train(
            "--separator ''",
            "invalid value '' for '--separator <CHAR>': separator ``: expected one ASCII character, or \\t",
        ),
        train(
            "--separator \u{e9}",
            "invalid value 'é' for '--separator <CHAR>': separator `é`: expected one ASCII character, or \\t",
        ),
        train(
            "--separator \"",
            "invalid value '\"' for '--separator <CHAR>': separator `\"`: expected one ASCII \
                character, or \\t",
        ),
        train(
            "--quote xx",
            "invalid value 'xx' for '--quote <CHAR>': quote `xx`: expected one ASCII character, or none",
        ),
        train("--quote ,", "the separator and the quote are both `,`"),
        train("--header --no-header", "the argument '--header' cannot be used with '--no-header'"),
        train(
            "--gpu-memory-fraction 2",
            "invalid value '2' for '--gpu-memory-fraction <SHARE>': expected a share of the \
                memory, above 0 and up to 1",
        ),
        train(
            "--gpu-devices a",
            "invalid value 'a' for '--gpu-devices <N,...>': invalid digit found in string",
        ),
        train(
            "--slice-timeout 0",
            "invalid value '0' for '--slice-timeout <SECONDS>': 0 is not in 1..=1000000",
        ),
        bare("--model {}/model --max-length 0", "--max-length 0: this encoder reads 1 to 64 tokens"),
        bare(
            "--model {}/model --max-length 2",
            "a length of 2 tokens leaves no room for text beside 2 special tokens",
        ),
        bare("--model {}/model --max-length 65", "--max-length 65: this encoder reads 1 to 64 tokens"),
        bare(
            "--model {}/model --max-length x",
            "invalid value 'x' for '--max-length <TOKENS>': invalid digit found in string",
        ),
        bare(
            "--model {}/model --max-length 24 --backend npu",
            "invalid value 'npu' for '--backend <BACKEND>': `npu` is none of auto, tpu, gpu and cpu",
        ),
        bare(
            "--model {}/model --max-length 24 --plugin {}/data.csv",
            "a plugin's file is given, but not which backend it is for; --plugin needs --backend \
                cpu, gpu or tpu",
        ),
        bare(
            "--model ./nowhere",
            "`./nowhere` is neither a folder here, nor gs://bucket/folder, nor a model id such as \
                google-bert/bert-base-multilingual-cased",
        ),
        bare(
            "--model a/b/c",
            "`a/b/c` is neither a folder here, nor gs://bucket/folder, nor a model id such as \
                google-bert/bert-base-multilingual-cased",
        ),
        bare(
            "--model ''",
            "`` is neither a folder here, nor gs://bucket/folder, nor a model id such as google-bert/bert-base-multilingual-cased",
        ),
        bare(
            "--model {}/data.csv",
            "{}/data.csv: is a file; give the folder that holds config.json and model.safetensors",
        ),
        bare(
            "--model {}/model --max-length 24 --backend cpu --json --overwrite --unknown",
            "unexpected argument '--unknown' found",
        ),
        case(
            "evaluate --data {}/data.csv",
            "the following required arguments were not provided: --run <DIR>",
        ),
        case(
            "evaluate --run {}/none --data {}/data.csv",
            "{}/none: there is no such folder; give the --output of a training run",
        ),
        case(
            "evaluate --run {demo} --data {}/data.csv --batch-size 0",
            "invalid value '0' for '--batch-size <N>': 0 is not in 1..=65536",
        ),
        case(
            "evaluate --run {demo} --data {}/data.csv --backend cpu --batch-size 3 --replicas 2",
            "a batch of 3 can't be split evenly over 2 replicas; choose a --batch-size that is a \
                multiple of 2, or other --replicas",
        ),
        case(
            "predict --run {demo} --data {}/data.csv",
            "the following required arguments were not provided: --output <FILE>",
        ),
        case(
            "predict --run {demo} --data {}/data.csv --output {}/new/labels.csv --batch-size x",
            "invalid value 'x' for '--batch-size <N>': invalid digit found in string",
        ),
        case(
            "plan",
            "the following required arguments were not provided: <--topology <SLICE>|--gpu <NAME>|--compare <NAME,...>>",
        ),
        case(
            "plan --topology v3-8 --gpu h100",
            "the argument '--topology <SLICE>' cannot be used with '--gpu <NAME>'",
        ),
        case(
            "plan --topology v3-9",
            "v3-9: not a TPU topology; expected one such as v2:2x2x1 (v2-8), v3:2x2x1 (v3-8), \
                v3:4x4x1 (v3-32), v4:2x2x1 (v4-8), v4:2x2x4 (v4-32), v5e:1x1 (v5litepod-1), v5e:2x2 \
                (v5litepod-4), v5e:2x4 (v5litepod-8), v5e:4x4 (v5litepod-16), v5p:2x2x1 (v5p-8), \
                v6e:1x1 (v6e-1), v6e:2x2 (v6e-4), v6e:2x4 (v6e-8), v6e:4x4 (v6e-16)",
        ),
        case("plan --topology ''", "a value is required for '--topology <SLICE>' but none was supplied"),
        case("plan --gpu v100", "v100: not a GPU that is known here; expected one of a100, h100, h200"),
        case(
            "plan --topology v3-8 --deterministic",
            "the argument '--topology <SLICE>' cannot be used with '--deterministic'",
        ),
        case(
            "plan --gpu h100 --chart {}/new/plan.png",
            "--chart draws cycles, which only TPU's compiler estimates; use it with --topology",
        ),
        case(
            "plan --topology v3-8 --size huge",
            "invalid value 'huge' for '--size <SIZE>': `huge` is none of tiny, minilm, mbert, \
                bert-base, bert-large",
        ),
        case(
            "plan --topology v3-8 --step walk",
            "invalid value 'walk' for '--step <STEP>': `walk` is none of train, eval and predict",
        ),
        case(
            "plan --topology v3-8 --size tiny --model {}/model",
            "the argument '--size <SIZE>' cannot be used with '--model <ID|DIR>'",
        ),
        case(
            "plan --topology v3-8 --largest-batch --step train",
            "the argument '--largest-batch' cannot be used with '--step <STEP>'",
        ),
        case(
            "plan --topology v3-8 --model {}/data.csv",
            "{}/data.csv: is a file; give the folder that holds config.json and model.safetensors",
        ),
        case("graph", "the following required arguments were not provided: --step <STEP>"),
        case(
            "graph --step walk",
            "invalid value 'walk' for '--step <STEP>': `walk` is none of train, eval and predict",
        ),
        case(
            "graph --step train --size huge",
            "invalid value 'huge' for '--size <SIZE>': `huge` is none of tiny, minilm, mbert, \
                bert-base, bert-large",
        ),
        case("graph --step train --rows 0", "invalid value '0' for '--rows <N>': 0 is not in 1..=65536"),
        case(
            "graph --step train --replicas 65537",
            "invalid value '65537' for '--replicas <N>': 65537 is not in 1..=65536",
        ),
        case(
            "graph --step train --size tiny --max-length 65",
            "--max-length 65: this encoder reads 1 to 64 tokens",
        ),
        case(
            "graph --step train --size tiny --dropout 1",
            "--dropout 1: expected a share from 0 to less than 1",
        ),
        case("plugins install", "the following required arguments were not provided: <BACKEND>"),
        case(
            "plugins install npu",
            "invalid value 'npu' for '<BACKEND>': unknown backend \"npu\": expected cpu, gpu or tpu",
        ),
        case("plugins install cpu --cuda", "--cuda is for gpu, and this is cpu"),
        case("plugins --json install cpu", "the subcommand 'install' cannot be used with '--json'"),
    ];
    let encode = "encode --backend cpu --model {demo} --input {}/sentences.txt --output {}/new/states";
    for (flags, message) in [
        ("--max-length 0", "a length of 0 tokens leaves no room for text beside 2 special tokens"),
        ("--max-length 2", "a length of 2 tokens leaves no room for text beside 2 special tokens"),
        (
            "--max-length 65",
            "{demo}/checkpoints/step-270/config.json: this model reads at most 64 tokens, not 65; \
                lower --max-length",
        ),
        ("--max-length x", "invalid value 'x' for '--max-length <TOKENS>': invalid digit found in string"),
        ("--max-length 8 --batch-size 0", "invalid value '0' for '--batch-size <N>': 0 is not in 1..=65536"),
        (
            "--max-length 8 --batch-size 3 --replicas 2",
            "a batch of 3 can't be split evenly over 2 replicas; choose a --batch-size that is a \
                multiple of 2, or other --replicas",
        ),
    ] {
        cases.push(case(&format!("{encode} {flags}"), message));
    }
    cases
}
