//! Text that somebody else wrote: any bytes, kept exactly, shown safely.
