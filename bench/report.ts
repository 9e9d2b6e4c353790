export function writeReport(_: string, __: unknown): void {}
