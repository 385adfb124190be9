//! Runs graphs on the CPU plugin, with ndarray on both sides.

use std::sync::OnceLock;

use bert_xla::hlo::{DotDimensions, Graph, Program, Tensor};
use bert_xla::pjrt::{self, Argument, Buffer, Client, CompileOptions, LoadedExecutable, ModuleFormat};
use bert_xla::shape::{ElementType, Shape};
use half::bf16;
use ndarray::{ArrayD, ArrayRef, Dimension, IxDyn};

/// An array of any element type, as its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct HostArray {
    pub shape: Shape,
    pub bytes: Vec<u8>,
}

/// A Rust type that stands for an element type.
pub trait Host: Copy + 'static {
    const TYPE: ElementType;
    fn write(self, bytes: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Self;
    fn to_f64(self) -> f64;
}

macro_rules! hosts {
    ($($type:ty => $element:ident, $to_f64:expr;)*) => {$(
        impl Host for $type {
            const TYPE: ElementType = ElementType::$element;
            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_ne_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                Self::from_ne_bytes(bytes.try_into().unwrap())
            }
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
        }
    )*};
}

hosts! {
    f32 => F32, f64::from;
    f64 => F64, |x| x;
    bf16 => Bf16, bf16::to_f64;
    i32 => S32, f64::from;
    u32 => U32, f64::from;
    u64 => U64, |x| x as f64;
}

impl Host for bool {
    const TYPE: ElementType = ElementType::Pred;
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.push(u8::from(self));
    }
    fn read(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self))
    }
}

impl<T: Host, D: Dimension> From<&ArrayRef<T, D>> for HostArray {
    fn from(array: &ArrayRef<T, D>) -> Self {
        let mut bytes = Vec::new();
        array.iter().for_each(|element| element.write(&mut bytes));
        Self { shape: Shape::new(T::TYPE, array.shape()), bytes }
    }
}

impl HostArray {
    /// A scalar.
    pub fn scalar<T: Host>(value: T) -> Self {
        (&*ndarray::arr0(value)).into()
    }

    /// The elements as `T`, which must be their type.
    pub fn to<T: Host>(&self) -> ArrayD<T> {
        assert_eq!(self.shape.element_type, T::TYPE);
        let elements = self.bytes.chunks_exact(T::TYPE.size()).map(T::read).collect();
        ArrayD::from_shape_vec(IxDyn(&self.shape.dims), elements).unwrap()
    }

    /// The elements, of whatever type, as `f64`.
    pub fn to_f64(&self) -> ArrayD<f64> {
        fn convert<T: Host>(array: &HostArray) -> ArrayD<f64> {
            array.to::<T>().mapv(T::to_f64)
        }
        match self.shape.element_type {
            ElementType::F32 => convert::<f32>(self),
            ElementType::F64 => convert::<f64>(self),
            ElementType::Bf16 => convert::<bf16>(self),
            ElementType::S32 => convert::<i32>(self),
            ElementType::U32 => convert::<u32>(self),
            ElementType::U64 => convert::<u64>(self),
            ElementType::Pred => convert::<bool>(self),
            other => panic!("no test uses {other}"),
        }
    }

    /// The element at a flat index of an `f64` array, moved by `by`.
    pub fn nudged(&self, index: usize, by: f64) -> Self {
        let mut values = self.to::<f64>();
        *values.iter_mut().nth(index).unwrap() += by;
        (&*values).into()
    }

    fn upload(&self, device: pjrt::Device<'_>) -> Buffer {
        client().buffer_from_bytes(&self.bytes, &self.shape, device).unwrap()
    }

    fn download(buffer: &Buffer) -> Self {
        Self { shape: buffer.shape().clone(), bytes: buffer.to_bytes().unwrap() }
    }
}

/// One client with four devices for all tests of a binary.
pub fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| super::cpu_client(4))
}

/// A program compiled for the first `replicas` devices.
pub struct Compiled(pub LoadedExecutable);

impl Compiled {
    pub fn new(program: &Program<'_>, replicas: usize) -> Self {
        Self::from_code(program, program.to_hlo_proto(), replicas)
    }

    /// As programs for the CPU are compiled.
    pub fn for_cpu(program: &Program<'_>, replicas: usize) -> Self {
        Self::from_code(program, program.to_cpu_hlo_proto(), replicas)
    }

    fn from_code(program: &Program<'_>, code: Vec<u8>, replicas: usize) -> Self {
        let parameters = program.parameter_shapes();
        let module = pjrt::Module { format: ModuleFormat::Hlo, code: &code, parameters: &parameters };
        let compiled = client().compile(&module, &CompileOptions::replicas(replicas));
        let loaded = compiled.unwrap_or_else(|error| panic!("{error}\n{}", program.to_text()));
        let found = loaded.executable().outputs().iter().map(|shape| (**shape).clone()).collect::<Vec<_>>();
        assert_eq!(found, program.output_shapes(), "what XLA says of the outputs");
        Self(loaded)
    }

    /// `[replica][input]` to `[replica][output]`.
    pub fn run_replicated(&self, inputs: &[Vec<HostArray>]) -> Vec<Vec<HostArray>> {
        let device = |id: i32| client().devices().find(|device| device.id() == id).unwrap();
        let upload = |(id, list): (&i32, &Vec<HostArray>)| {
            list.iter().map(|array| Argument::Donate(array.upload(device(*id)))).collect()
        };
        let arguments = self.0.device_ids().iter().zip(inputs).map(upload).collect();
        let outputs = self.0.execute(arguments).unwrap();
        outputs.iter().map(|list| list.iter().map(HostArray::download).collect()).collect()
    }

    pub fn run(&self, inputs: &[HostArray]) -> Vec<HostArray> {
        self.run_replicated(&[inputs.to_vec()]).remove(0)
    }
}

/// Many expressions of one graph, computed by one program and compared with what they should be.
pub struct Checks<'g> {
    pub graph: &'g Graph,
    parameters: Vec<Tensor<'g>>,
    inputs: Vec<HostArray>,
    expected: Vec<Check<'g>>,
}

struct Check<'g> {
    name: String,
    tensor: Tensor<'g>,
    expected: ArrayD<f64>,
    tolerance: f64,
}

impl<'g> Checks<'g> {
    pub fn new(graph: &'g Graph) -> Self {
        Self { graph, parameters: vec![], inputs: vec![], expected: vec![] }
    }

    /// A parameter with this value.
    pub fn input(&mut self, value: impl Into<HostArray>) -> Tensor<'g> {
        let value = value.into();
        let parameter = self.graph.parameter(format!("p{}", self.inputs.len()), value.shape.clone());
        self.parameters.push(parameter);
        self.inputs.push(value);
        parameter
    }

    /// `tensor` must have exactly these values.
    pub fn equal<T: Host, D: Dimension>(
        &mut self,
        name: &str,
        tensor: Tensor<'g>,
        expected: &ArrayRef<T, D>,
    ) {
        assert_eq!(tensor.shape().element_type, T::TYPE, "{name}");
        self.close(name, tensor, &expected.mapv(T::to_f64), 0.0);
    }

    /// `tensor` must lie within `tolerance * |expected|` of these values; XLA may flush subnormal `f32`s to zero.
    pub fn close<D: Dimension>(
        &mut self,
        name: &str,
        tensor: Tensor<'g>,
        expected: &ArrayRef<f64, D>,
        tolerance: f64,
    ) {
        let expected = expected.to_owned().into_dyn();
        assert_eq!(tensor.dims(), expected.shape(), "{name}: the shape rule");
        self.expected.push(Check { name: name.to_owned(), tensor, expected, tolerance });
    }

    /// Runs all of it and panics with every value that is off.
    pub fn run(self) {
        let outputs = self.expected.iter().map(|check| check.tensor).collect();
        let program = Program::new("checks", self.parameters, outputs);
        let outputs = Compiled::new(&program, 1).run(&self.inputs);
        let wrong = self.expected.iter().zip(&outputs).filter_map(|(check, output)| check.failure(output));
        let wrong = wrong.collect::<Vec<_>>();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

impl Check<'_> {
    fn failure(&self, output: &HostArray) -> Option<String> {
        let pairs = output.to_f64().into_iter().zip(&self.expected);
        let is_single = output.shape.element_type == ElementType::F32 && self.tolerance > 0.0;
        let flushed = if is_single { f64::from(f32::MIN_POSITIVE) } else { 0.0 };
        let off = pairs.enumerate().find(|(_, (found, expected))| {
            let same = found == *expected || (found.is_nan() && expected.is_nan());
            !(same || (found - *expected).abs() <= self.tolerance * expected.abs() + flushed)
        });
        let (index, (found, expected)) = off?;
        Some(format!("{}: element {index} is {found:e}, expected {expected:e}", self.name))
    }
}

/// Random numbers in `[low, high)`, the same on every run.
pub fn uniform(seed: u64, dims: &[usize], low: f64, high: f64) -> ArrayD<f64> {
    let mut random = fastrand::Rng::with_seed(seed);
    ArrayD::from_shape_fn(dims, |_| low + (high - low) * random.f64())
}

/// As [`uniform`], rounded to `f32`.
pub fn uniform_f32(seed: u64, dims: &[usize], low: f64, high: f64) -> ArrayD<f32> {
    uniform(seed, dims, low, high).mapv(|x| x as f32)
}

/// A dot by its definition: for every pair of free positions in every batch, the sum over what is contracted.
pub fn dot_reference(a: &ArrayD<f64>, b: &ArrayD<f64>, dims: &DotDimensions) -> ArrayD<f64> {
    let (lhs_free, rhs_free) = (dims.lhs_free(a.ndim()), dims.rhs_free(b.ndim()));
    let sizes = |x: &ArrayD<f64>, dims: &[usize]| dims.iter().map(|d| x.shape()[*d]).collect::<Vec<_>>();
    let output = [sizes(a, &dims.lhs_batch), sizes(a, &lhs_free), sizes(b, &rhs_free)].concat();
    let contracted = sizes(a, &dims.lhs_contracting);
    let (batch, lhs) = (dims.lhs_batch.len(), lhs_free.len());
    ArrayD::from_shape_fn(output, |at| {
        let (mut i, mut j) = (vec![0; a.ndim()], vec![0; b.ndim()]);
        dims.lhs_batch.iter().enumerate().for_each(|(n, d)| i[*d] = at[n]);
        dims.rhs_batch.iter().enumerate().for_each(|(n, d)| j[*d] = at[n]);
        lhs_free.iter().enumerate().for_each(|(n, d)| i[*d] = at[batch + n]);
        rhs_free.iter().enumerate().for_each(|(n, d)| j[*d] = at[batch + lhs + n]);
        let terms = ndarray::indices(contracted.clone()).into_iter().map(|k| {
            dims.lhs_contracting.iter().enumerate().for_each(|(n, d)| i[*d] = k[n]);
            dims.rhs_contracting.iter().enumerate().for_each(|(n, d)| j[*d] = k[n]);
            a[&i[..]] * b[&j[..]]
        });
        terms.sum()
    })
}
