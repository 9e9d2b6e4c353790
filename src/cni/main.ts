// The plugin's edge: environment, stdin and stdout of this process.

/** Runs the plugin in this process. */
export async function runPlugin(): Promise<void> {}
