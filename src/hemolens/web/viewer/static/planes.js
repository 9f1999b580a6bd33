export function render() {}
export function leave() {}
