//! Prices -> choice: the lowest, ties broken at random.

use fastrand::Rng;

/// Prices closer than this are a tie: less than any real difference of load or overlap.
const TIE: f32 = 1e-3;

/// The index of the lowest price. Ties are broken by reservoir sampling, each with the same chance: a fixed order
/// would send every request of an idle fleet to the first engine.
///
/// # Cost
/// One pass, no allocation.
pub fn lowest(prices: impl IntoIterator<Item = f32>, rng: &mut Rng) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    let mut ties = 0;
    for (index, price) in prices.into_iter().enumerate() {
        match best {
            Some((_, lowest)) if price > lowest + TIE => {}
            Some((_, lowest)) if price >= lowest - TIE => {
                ties += 1;
                if rng.u32(0..ties) == 0 {
                    best = Some((index, price.min(lowest)));
                }
            }
            _ => {
                best = Some((index, price));
                ties = 1;
            }
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_wins_wherever_it_stands() {
        let mut rng = Rng::with_seed(1);
        assert_eq!(lowest([3.0, 1.0, 2.0], &mut rng), Some(1));
        assert_eq!(lowest([1.0, 3.0, 2.0], &mut rng), Some(0));
        assert_eq!(lowest([], &mut rng), None);
    }

    #[test]
    fn ties_are_spread_evenly() {
        let mut rng = Rng::with_seed(7);
        let mut seen = [0u32; 4];
        for _ in 0..4_000 {
            seen[lowest([5.0, 2.0, 2.0, 2.0], &mut rng).unwrap()] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&n| (1_150..1_520).contains(&n)), "{seen:?}");
    }
}
