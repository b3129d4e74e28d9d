"""The classifiers that vote: their agreement, and the best of them by figures that need no labels."""

from collections.abc import Sequence

from debias_ssl.reporting.page import Section, Table


def members_section(table: Sequence[Sequence[str]]) -> Section:
    """The table of `members_table`."""
    head, *rows = table
    caption = (
        "Agreement is the share of rows in which a member votes with the majority. AMI, ARI, V-measure and FMI compare "
        "its predictions with clusters of its features. BNM is the nuclear norm of its probabilities, RankMe the "
        "effective rank of its features, CHI the Calinski-Harabasz index of its predictions. A star marks the "
        "member with the lowest mean rank."
    )
    return Section(
        title="Members", tables=[Table(title="Classifiers that vote", head=head, rows=rows, caption=caption)]
    )
