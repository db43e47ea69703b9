//! The chi-square distribution: how likely it is that even bytes look as
//! uneven as that.
//!
//! Tails of 10⁻⁹ are asked for, where rules of thumb are off. So the incomplete
//! gamma function is computed, by the series below its middle and the continued
//! fraction above it (NIST Digital Library of Mathematical Functions, 8.11.4
//! and 8.9.2).
#![forbid(unsafe_code)]

/// Where both ways of computing it stop: they converge quickly.
const STEPS: usize = 10_000;

/// ln Γ(x) for x ≥ 0.5, by Stirling's series (DLMF 5.11.1) at x + n, where it is
/// exact to the last digits, and back by the recurrence.
pub fn ln_gamma(x: f64) -> f64 {
    let (mut shifted, mut product) = (x, 1.0);
    while shifted < 16.0 {
        product *= shifted;
        shifted += 1.0;
    }
    let square = shifted * shifted;
    let terms = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0];
    let series = terms
        .iter()
        .rev()
        .fold(0.0, |sum, term| sum / square + term)
        / shifted;
    let half_ln_two_pi = 0.918_938_533_204_672_7;
    (shifted - 0.5) * shifted.ln() - shifted + half_ln_two_pi + series - product.ln()
}

/// Both tails of the chi-square distribution with `df` degrees of freedom at
/// `x`: the probabilities of a value of at most, and of at least, `x`. The
/// smaller one has its digits, however small it is.
pub fn chi_square_tails(df: u32, x: f64) -> (f64, f64) {
    if x <= 0.0 {
        return (0.0, 1.0);
    }
    let (a, z) = (f64::from(df) / 2.0, x / 2.0);
    // z^a e^-z / Γ(a)
    let front = (a * z.ln() - z - ln_gamma(a)).exp();
    if z < a + 1.0 {
        let lower = front * series(a, z);
        (lower, 1.0 - lower)
    } else {
        let upper = front * fraction(a, z);
        (1.0 - upper, upper)
    }
}

/// Σ z^n / (a (a+1) … (a+n)), from n = 0.
fn series(a: f64, z: f64) -> f64 {
    let (mut term, mut sum) = (1.0 / a, 1.0 / a);
    for n in 1..STEPS {
        term *= z / (a + n as f64);
        sum += term;
        if term < sum * f64::EPSILON {
            break;
        }
    }
    sum
}

/// 1/(z+1-a- 1(1-a)/(z+3-a- 2(2-a)/(z+5-a- …))), from its first convergents on.
fn fraction(a: f64, z: f64) -> f64 {
    // Numerators and denominators of two convergents, the later one scaled to
    // a denominator of 1.
    let first = z + 1.0 - a;
    let (mut before, mut now) = ((0.0, 1.0 / first), (1.0 / first, 1.0));
    // `now` is the convergent 1/first; `before` is 0/1, scaled alike.
    for n in 1..STEPS {
        let n = n as f64;
        let (numerator, denominator) = (-n * (n - a), z + 2.0 * n + 1.0 - a);
        let next = (
            denominator * now.0 + numerator * before.0,
            denominator * now.1 + numerator * before.1,
        );
        let value = next.0 / next.1;
        let done = (value - now.0).abs() <= value.abs() * f64::EPSILON;
        before = (now.0 / next.1, now.1 / next.1);
        now = (value, 1.0);
        if done {
            break;
        }
    }
    now.0
}

/// The value that is reached or exceeded with probability `p`.
pub fn chi_square_quantile(df: u32, p: f64) -> f64 {
    let (mut low, mut high) = (0.0, f64::from(df) * 4.0 + 1000.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        match chi_square_tails(df, middle).1 > p {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, relative: f64) {
        assert!(
            (found - expected).abs() <= expected.abs() * relative,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn gamma_at_whole_and_half_numbers() {
        // (n-1)!, and √π at a half.
        let mut factorial = 1.0_f64;
        for n in 1..30 {
            close(ln_gamma(f64::from(n)).exp(), factorial, 1e-11);
            factorial *= f64::from(n);
        }
        close(ln_gamma(0.5).exp(), std::f64::consts::PI.sqrt(), 1e-11);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Tables of the chi-square distribution, as in the NIST/SEMATECH
        // e-Handbook of Statistical Methods, 1.3.6.7.4.
        for (df, p, value) in [
            (1, 0.05, 3.841),
            (1, 0.001, 10.828),
            (10, 0.05, 18.307),
            (10, 0.01, 23.209),
            (100, 0.05, 124.342),
            (100, 0.001, 149.449),
            (100, 0.99, 70.065),
        ] {
            assert!(
                (chi_square_quantile(df, p) - value).abs() < 0.0006,
                "{df} {p}"
            );
        }
    }

    /// For an even number of degrees of freedom the tail is a finite sum.
    #[test]
    fn small_tails_are_those_of_the_closed_form() {
        for df in [2, 20, 254, 256] {
            for factor in [0.2, 0.7, 1.0, 1.3, 1.7, 2.5] {
                let x = f64::from(df) * factor;
                let z: f64 = x / 2.0;
                let (mut term, mut sum) = ((-z).exp(), 0.0);
                for k in 1..=df / 2 {
                    sum += term;
                    term *= z / f64::from(k);
                }
                let (lower, upper) = chi_square_tails(df, x);
                close(upper, sum, 1e-9);
                close(lower + upper, 1.0, 1e-12);
            }
        }
    }

    /// Of the 255 degrees of freedom of bytes, by the series in 60 decimal
    /// digits.
    #[test]
    fn tails_of_bytes() {
        for (x, upper) in [
            (255.0, 0.488_222_521_770_406),
            (400.0, 1.660_002_524_412_45e-8),
            (437.5, 8.785_396_763_677_33e-12),
            (600.0, 7.531_973_752_278_67e-30),
        ] {
            close(chi_square_tails(255, x).1, upper, 1e-9);
        }
        assert!((chi_square_quantile(255, 1e-9) - 414.545_039_664).abs() < 1e-6);
        assert!((chi_square_quantile(255, 1.0 - 1e-9) - 141.927_32).abs() < 1e-3);
    }
}
