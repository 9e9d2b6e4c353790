// A batch: a fixed-capacity list of frame numbers, owned by one thread. Who holds the batch owns its frames.

/** Frames that a device gives at most in one receive. */
export const BATCH = 256

export class Batch {
  readonly frames: Int32Array
  length = 0

  constructor(capacity = BATCH) {
    this.frames = new Int32Array(capacity)
  }

  get capacity(): number {
    return this.frames.length
  }

  /** Free places. */
  get room(): number {
    return this.frames.length - this.length
  }

  /** Appends a frame. NB: no check, so that the path has none; whoever sizes a batch sees to it that it cannot overflow. */
  push(frame: number): void {
    this.frames[this.length++] = frame
  }
}
