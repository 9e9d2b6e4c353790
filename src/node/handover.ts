// What a node process hands to its successor.

/** A description and the descriptors that it speaks of, which belong to whoever has this. */
export interface Inheritance {
  fds: number[]
}
