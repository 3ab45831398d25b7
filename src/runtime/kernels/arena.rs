//! Room that is used again: what a thread has given back, instead of memory of the system's. Of a forward pass like the ones before it
//! no layer asks for any.

use super::packed::Bytes;
use std::cell::RefCell;
use std::ops::Deref;
use std::thread::LocalKey;

/// Vectors that a thread keeps. A forward pass has about 20 at once.
const MOST: usize = 48;
/// How many times as large as what is asked for may be what is given, but for little of it: some of it is held for long, and
/// would hold what it does not need.
const SPARE: usize = 4;
const LITTLE: usize = 4096;

/// What there is an arena for.
pub trait Kept: Copy + Default + 'static {
    fn arena() -> &'static LocalKey<Arena<Self>>;
}

/// Vectors that wait to be taken.
pub type Arena<T> = RefCell<Vec<Vec<T>>>;

macro_rules! kept {
    ($($type:ty)*) => {
        $(impl $crate::runtime::kernels::arena::Kept for $type {
            fn arena() -> &'static std::thread::LocalKey<$crate::runtime::kernels::arena::Arena<Self>> {
                use $crate::runtime::kernels::arena::Arena;
                thread_local!(static ARENA: Arena<$type> = const { std::cell::RefCell::new(Vec::new()) });
                &ARENA
            }
        })*
    };
}
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_imports))]
pub(super) use kept;
kept!(f32 i32 u32 u8 i8 Bytes);

/// `len` values, whatever they were used for before. [`give`] it back, or others cannot use it.
pub fn room<T: Kept>(len: usize) -> Vec<T> {
    let mut taken = T::arena().with_borrow_mut(|kept| {
        // The smallest that is large enough, or the largest that is not, in whose place a larger one comes.
        let most = len.saturating_mul(SPARE).max(LITTLE);
        let fits = |v: &Vec<T>| (v.capacity() < len, v.capacity().abs_diff(len));
        let few = (0..kept.len()).filter(|&i| kept[i].capacity() <= most);
        let best = few.min_by_key(|&i| fits(&kept[i]));
        best.map_or(Vec::new(), |i| kept.swap_remove(i))
    });
    if taken.capacity() < len {
        // Nothing in it is worth being moved, and what grows by itself grows twofold.
        drop(std::mem::take(&mut taken));
        taken.reserve_exact(len);
    }
    taken.resize(len, T::default());
    taken
}

/// The values of `room` in memory of their own, as large as they are: for what outlives a pass. What it stood in may be
/// that of thousands of others.
pub fn leave<T: Kept>(room: Vec<T>) -> Vec<T> {
    let values = room.to_vec();
    give(room);
    values
}

/// `len` zeros.
pub fn zeros<T: Kept>(len: usize) -> Vec<T> {
    let mut room = room(len);
    room.fill(T::default());
    room
}

/// The values of `x`.
pub fn copy<T: Kept>(x: &[T]) -> Vec<T> {
    let mut room = room(x.len());
    room.copy_from_slice(x);
    room
}

/// Gives back what [`room`] gave.
pub fn give<T: Kept>(room: Vec<T>) {
    if room.capacity() == 0 {
        return;
    }
    // At the end of a thread there may be nothing left to keep it in.
    let _ = T::arena().try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < MOST {
            kept.push(room);
        }
    });
}

/// [`give`] of several.
pub fn give_all<T: Kept, const N: usize>(rooms: [Vec<T>; N]) {
    rooms.into_iter().for_each(give);
}

/// Values that are somebody's, or in room that is given back in the end.
#[derive(Debug)]
pub enum Held<'x> {
    Borrowed(&'x [f32]),
    Room(Vec<f32>),
}

impl Deref for Held<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Held::Borrowed(x) => x,
            Held::Room(room) => room,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Held::Room(room) = self {
            give(std::mem::take(room));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_best_is_taken_and_the_largest_grows() {
        std::thread::spawn(|| {
            for capacity in [10, 100, 1000] {
                give(Vec::<f32>::with_capacity(capacity));
            }
            let (some, more) = (room::<f32>(60), room::<f32>(60));
            assert_eq!((some.capacity(), more.capacity()), (100, 1000));
            let least = room::<f32>(20);
            assert_eq!((least.capacity(), least.len()), (20, 20));
            f32::arena().with_borrow(|kept| assert!(kept.is_empty()));
            give(more);
            assert_eq!(room::<f32>(1001).capacity(), 1001);
            f32::arena().with_borrow(|kept| assert!(kept.is_empty()));
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn little_is_not_put_into_much() {
        std::thread::spawn(|| {
            give(Vec::<f32>::with_capacity(SPARE * LITTLE + 1));
            assert_eq!(room::<f32>(LITTLE).capacity(), LITTLE);
            assert_eq!(room::<f32>(LITTLE + 1).capacity(), SPARE * LITTLE + 1);
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn what_leaves_takes_no_room_along() {
        std::thread::spawn(|| {
            give(Vec::<f32>::with_capacity(1000));
            let left = leave(copy(&[1.0f32, 2.0]));
            assert_eq!((left.capacity(), &left[..]), (2, &[1.0, 2.0][..]));
            f32::arena().with_borrow(|kept| assert_eq!(kept[0].capacity(), 1000));
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn zeros_are_zeros_and_copies_copies() {
        give(vec![7.0f32; 50]);
        assert_eq!(zeros::<f32>(40), [0.0; 40]);
        give(vec![7u8; 50]);
        assert_eq!(copy(&[1u8, 2]), [1, 2]);
    }

    #[test]
    fn no_more_is_kept_than_is_of_use() {
        std::thread::spawn(|| {
            for _ in 0..2 * MOST {
                give(vec![0u32; 3]);
            }
            u32::arena().with_borrow(|kept| assert_eq!(kept.len(), MOST));
            give(Vec::<u8>::new());
            u8::arena().with_borrow(|kept| assert!(kept.is_empty()));
        })
        .join()
        .expect("no panic");
    }
}
