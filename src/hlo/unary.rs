//! Functions of one array, element by element. All there is to one is in this file: its opcode, its element types, its
//! gradient and its method of [`Tensor`].

use super::graph::Tensor;
use super::op::Op;
use crate::shape::ElementType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    Abs,
    Sign,
    Negate,
    Exp,
    /// `e^x - 1`, exact near zero.
    Expm1,
    Log,
    /// `ln(1 + x)`, exact near zero.
    Log1p,
    Tanh,
    /// `1 / (1 + e^-x)`.
    Logistic,
    Sin,
    Cos,
    Erf,
    Sqrt,
    Rsqrt,
    Not,
}

impl Unary {
    pub fn name(self) -> &'static str {
        match self {
            Unary::Abs => "abs",
            Unary::Sign => "sign",
            Unary::Negate => "negate",
            Unary::Exp => "exponential",
            Unary::Expm1 => "exponential-minus-one",
            Unary::Log => "log",
            Unary::Log1p => "log-plus-one",
            Unary::Tanh => "tanh",
            Unary::Logistic => "logistic",
            Unary::Sin => "sine",
            Unary::Cos => "cosine",
            Unary::Erf => "erf",
            Unary::Sqrt => "sqrt",
            Unary::Rsqrt => "rsqrt",
            Unary::Not => "not",
        }
    }

    /// Whether it is defined on arrays of this type.
    pub(super) fn takes(self, element_type: ElementType) -> bool {
        match self {
            Unary::Abs | Unary::Sign => element_type.is_signed(),
            Unary::Negate => element_type != ElementType::Pred,
            Unary::Not => !element_type.is_float(),
            _ => element_type.is_float(),
        }
    }

    /// The gradient of `x`, for `g`, the gradient of `y = f(x)`.
    pub(super) fn gradient<'g>(self, x: Tensor<'g>, y: Tensor<'g>, g: Tensor<'g>) -> Option<Tensor<'g>> {
        match self {
            // |x|' = sign x
            Unary::Abs => Some(g * x.sign()),
            // sign' = 0; not is not differentiable
            Unary::Sign | Unary::Not => None,
            Unary::Negate => Some(-g),
            // (e^x)' = e^x
            Unary::Exp => Some(g * y),
            // (e^x - 1)' = e^x
            Unary::Expm1 => Some(g * (y + 1.0)),
            // (ln x)' = 1/x
            Unary::Log => Some(g / x),
            // (ln(1+x))' = 1/(1+x)
            Unary::Log1p => Some(g / (x + 1.0)),
            // tanh' = 1 - tanh^2
            Unary::Tanh => Some(g * (-(y * y) + 1.0)),
            // s' = s (1 - s)
            Unary::Logistic => Some(g * (y * (-y + 1.0))),
            // sin' = cos
            Unary::Sin => Some(g * x.cos()),
            // cos' = -sin
            Unary::Cos => Some(-(g * x.sin())),
            // erf' = 2/sqrt(pi) e^(-x^2)
            Unary::Erf => Some(g * ((-(x * x)).exp() * std::f64::consts::FRAC_2_SQRT_PI)),
            // sqrt' = 1/(2 sqrt x)
            Unary::Sqrt => Some(g * 0.5 / y),
            // (x^-1/2)' = -1/2 x^-3/2
            Unary::Rsqrt => Some(g * (y * y * y * -0.5)),
        }
    }
}

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $method:ident => $variant:ident;)*) => {
        impl<'g> Tensor<'g> {
            $($(#[$doc])* #[track_caller]
            pub fn $method(self) -> Tensor<'g> {
                self.graph.insert(Op::Unary(Unary::$variant), &[self])
            })*
        }
    };
}

unary_methods! {
    abs => Abs;
    /// -1, 0 or 1.
    sign => Sign;
    exp => Exp;
    /// `e^x - 1`, exact near zero.
    expm1 => Expm1;
    log => Log;
    /// `ln(1 + x)`, exact near zero.
    log1p => Log1p;
    tanh => Tanh;
    /// `1 / (1 + e^-x)`.
    sigmoid => Logistic;
    sin => Sin;
    cos => Cos;
    erf => Erf;
    sqrt => Sqrt;
    /// `1 / sqrt(x)`.
    rsqrt => Rsqrt;
}

impl<'g> std::ops::Neg for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn neg(self) -> Tensor<'g> {
        self.graph.insert(Op::Unary(Unary::Negate), &[self])
    }
}

impl<'g> std::ops::Not for Tensor<'g> {
    type Output = Tensor<'g>;
    #[track_caller]
    fn not(self) -> Tensor<'g> {
        self.graph.insert(Op::Unary(Unary::Not), &[self])
    }
}
